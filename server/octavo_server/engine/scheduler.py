"""Decides what each step computes: one token budget, no separate prefill and decode phases.

Each step gives every request some number of its uncomputed tokens: one for a request that decodes,
a chunk of the prompt for one that does not yet (Sarathi-Serve's stall-free batching, Agrawal et
al., OSDI 2024). First come, first served; when pages run out the youngest is preempted and later
recomputed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.messages import Add, EngineStats, FinishReason, TokenOutput
from octavo_server.engine.sequence import NO_ROW, Sequence, Status
from octavo_server.engine.step import NewRow, Sampled, Step

COUNT_SLOTS = 64
"""Rows with penalties at a time: each costs 5 bytes per vocabulary id (48 MB for 152k ids)."""

WATERMARK = 0.01
"""Share of pages kept free at admission, so that running rows can grow before anybody is preempted.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """`max_step_tokens` bounds a step while nobody decodes, `max_mixed_tokens` while somebody does:
    a decoding stream waits for the whole step, so its inter-token latency is bounded by the latter.
    """

    max_model_len: int
    max_num_seqs: int
    max_step_tokens: int
    max_mixed_tokens: int
    block_size: int
    count_slots: int = COUNT_SLOTS


class Scheduler:
    """Owns the sequences and their pages; `schedule` and `update` alternate, `abort` between."""

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.pool = pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._live: dict[str, Sequence] = {}
        self._clock = clock
        self._free_rows = list(range(config.max_num_seqs - 1, -1, -1))
        self._freed_rows: list[int] = []
        self._scheduled: list[Sequence] = []
        self._published: list[int] = []
        self._count_slots_used = 0
        self._watermark_blocks = int(pool.num_blocks * WATERMARK)
        self._counters = _Counters()

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Add) -> None:
        """Queue a validated request."""
        sequence = Sequence(request)
        fits = 0 < sequence.num_prompt_tokens < self.config.max_model_len
        assert fits, "validated by the caller"
        assert request.request_id not in self._live, "request ids are never reused"
        self._live[sequence.request_id] = sequence
        self.waiting.append(sequence)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests and free their pages; ids that are not live are ignored."""
        for request_id in request_ids:
            sequence = self._live.get(request_id)
            if sequence is not None:
                self._finish(sequence)

    def schedule(self) -> Step | None:
        """The next step, None when there is nothing to do."""
        step = Step(self._freed_rows, [], [], [], [], [], [])
        self._scheduled, self._published = [], []
        decoding = [sequence for sequence in self.running if sequence.num_uncomputed == 1]
        budget = self.config.max_mixed_tokens if decoding else self.config.max_step_tokens
        preempted, starved = 0, False
        in_prefill = [sequence for sequence in self.running if sequence.num_uncomputed > 1]
        for sequence in decoding + in_prefill:
            count = min(sequence.num_uncomputed, budget)
            if sequence.status is not Status.RUNNING or not count:
                continue
            have = len(sequence.block_ids)
            fits, victims = self._grow(sequence, count)
            preempted += victims
            starved |= not fits
            if fits:
                if len(sequence.block_ids) > have:
                    step.appended_blocks.append((sequence.row, sequence.block_ids[have:]))
                self._give(step, sequence, count)
                budget -= count
        promised = sum(map(self._owed_blocks, self.running))
        # Nobody new while somebody who is here already goes without.
        open_to_new = not preempted and not starved
        while self.waiting and budget and self._free_rows and open_to_new:
            count = self._admit(self.waiting[0], budget, promised)
            if not count:
                break
            sequence = self.waiting.popleft()
            promised += self._owed_blocks(sequence)
            step.new_rows.append(
                NewRow(
                    sequence.row,
                    sequence.token_ids[:],
                    sequence.num_prompt_tokens,
                    sequence.block_ids[:],
                    sequence.params,
                )
            )
            self._give(step, sequence, count)
            budget -= count
        if not step.rows:
            assert not self.has_work, "work that no step can take on"
            return None
        # NOTE: rows freed by preemption in this very pass are in the list too; a row is freed
        # before it is taken again because Step is applied in field order.
        self._freed_rows = []
        return step

    def update(self, step: Step, sampled: Sampled) -> list[TokenOutput]:
        """Append what the step drew; finish what ended. Rows aborted meanwhile get nothing."""
        outputs: list[TokenOutput] = []
        for index, sequence in enumerate(self._scheduled):
            if sequence.status is not Status.RUNNING:
                continue
            sequence.num_computed = step.starts[index] + step.counts[index]
            judged = sampled.prompt_logprobs[index]
            if judged is not None and sequence.prompt_logprobs is not None:
                sequence.prompt_logprobs.extend(judged)
            token_id = sampled.token_ids[index]
            if token_id is None:
                continue
            output = TokenOutput(sequence.request_id, [token_id])
            if sequence.num_output_tokens == 0:
                output.cached_tokens = sequence.cached_tokens
                output.scheduled = sequence.scheduled
                output.prompt_logprobs, sequence.prompt_logprobs = sequence.prompt_logprobs, None
                self._counters.prompt_tokens += sequence.num_prompt_tokens
            logprobs = sampled.logprobs[index]
            if logprobs is not None:
                output.logprobs = [logprobs]
            sequence.token_ids.append(token_id)
            output.finish_reason = self._finish_reason(sequence, token_id)
            if output.finish_reason == "stop":
                output.stop_token_id = token_id
            if output.finish_reason is not None:
                self._finish(sequence)
            outputs.append(output)
        self._counters.generation_tokens += len(outputs)
        self._counters.step_tokens += step.num_tokens
        return outputs

    def fail_step(self, message: str) -> list[TokenOutput]:
        """The step did not run to its end: its requests end with an error, its pages are not
        findable.
        """
        for block in self._published:
            self.pool.withdraw(block)
        outputs = []
        for sequence in self._scheduled:
            if sequence.status is Status.RUNNING:
                outputs.append(
                    TokenOutput(sequence.request_id, [], finish_reason="error", error=message)
                )
                self._finish(sequence)
        return outputs

    def take_stats(self) -> EngineStats:
        """Gauges now, counters since the previous call."""
        counters, self._counters = self._counters, _Counters()
        return EngineStats(
            running=len(self.running),
            waiting=len(self.waiting),
            kv_cache_usage=self.pool.usage,
            preemptions=counters.preemptions,
            prefix_cache_queries=counters.prefix_cache_queries,
            prefix_cache_hits=counters.prefix_cache_hits,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            step_tokens=counters.step_tokens,
        )

    def check_integrity(self) -> None:
        """Assert the invariants that tie sequences, rows and pages together."""
        self.pool.check_integrity([sequence.block_ids for sequence in self._live.values()])
        rows = [sequence.row for sequence in self.running]
        assert len(set(rows) - {NO_ROW}) == len(rows), "a row has two sequences"
        assert len(rows) + len(self._free_rows) == self.config.max_num_seqs, "a row was lost"
        assert len(self._live) == len(self.running) + len(self.waiting), "a request was lost"
        assert all(not sequence.block_ids for sequence in self.waiting), (
            "a waiting request holds pages"
        )

    # -- the parts of schedule() ------------------------------------------------------------------

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.config.block_size)

    def _owed_blocks(self, sequence: Sequence) -> int:
        """Pages for the rest of an admitted prompt; whoever comes later must leave them alone."""
        return self._blocks_for(len(sequence.token_ids)) - len(sequence.block_ids)

    def _grow(self, sequence: Sequence, count: int) -> tuple[bool, int]:
        """Pages for `count` more tokens, preempting the youngest not yet in this step if need be.

        Returns whether the sequence can be computed now, and how many were preempted.
        """
        need = self._blocks_for(sequence.num_computed + count) - len(sequence.block_ids)
        preempted = 0
        while need > self.pool.num_free:
            victim = self._youngest_unscheduled()
            if victim is sequence and sequence.num_uncomputed > 1:
                assert self._scheduled, "one sequence of max_model_len always fits an empty pool"
                # Rows of this step will end or be preempted; waiting keeps what is computed.
                return False, preempted
            self._preempt(victim)
            preempted += 1
            if victim is sequence:
                return False, preempted
        sequence.block_ids += self.pool.allocate(max(need, 0))
        return True, preempted

    def _youngest_unscheduled(self) -> Sequence:
        scheduled = set(map(id, self._scheduled))
        return next(each for each in reversed(self.running) if id(each) not in scheduled)

    def _admit(self, sequence: Sequence, budget: int, promised: int) -> int:
        """Give a waiting sequence a row, its cached prefix, its first pages; 0 if it must wait."""
        if sequence.params.needs_counts and self._count_slots_used == self.config.count_slots:
            return 0
        hashes = sequence.extend_hashes(self.config.block_size)
        hits: list[int] = []
        if not sequence.wants_prompt_logprobs:
            # One token is always left to compute: its logits are what the request came for.
            hits = self.pool.find(hashes[: (len(sequence.token_ids) - 1) // self.config.block_size])
        cached = len(hits) * self.config.block_size
        available = self.pool.num_free - self.pool.count_unheld(hits)
        whole = self._blocks_for(len(sequence.token_ids)) - len(hits)
        reserve = promised + (self._watermark_blocks if self.running else 0)
        if whole + reserve > available:
            return 0
        count = min(len(sequence.token_ids) - cached, budget)
        self.pool.acquire(hits)
        sequence.block_ids = hits + self.pool.allocate(self._blocks_for(cached + count) - len(hits))
        sequence.num_computed = cached
        sequence.num_published = len(hits)
        sequence.row = self._free_rows.pop()
        sequence.status = Status.RUNNING
        self._count_slots_used += sequence.params.needs_counts
        if sequence.cached_tokens is None:
            sequence.cached_tokens = min(cached, sequence.num_prompt_tokens)
            sequence.scheduled = self._clock()
            self._counters.prefix_cache_queries += sequence.num_prompt_tokens
            self._counters.prefix_cache_hits += sequence.cached_tokens
        if sequence.prompt_logprobs is not None:
            sequence.prompt_logprobs = [None]
        self.running.append(sequence)
        return count

    def _give(self, step: Step, sequence: Sequence, count: int) -> None:
        """Put `count` tokens of a sequence that has the pages into the step."""
        end = sequence.num_computed + count
        step.rows.append(sequence.row)
        step.starts.append(sequence.num_computed)
        step.counts.append(count)
        step.samples.append(end == len(sequence.token_ids))
        self._scheduled.append(sequence)
        # NOTE: findable from now on, before it is computed: in each layer all keys of a step are
        # written before any of its rows attends, so a request admitted later in this same pass may
        # hit.
        hashes = sequence.extend_hashes(self.config.block_size)
        for index in range(sequence.num_published, end // self.config.block_size):
            if self.pool.publish(sequence.block_ids[index], hashes[index]):
                self._published.append(sequence.block_ids[index])
            sequence.num_published = index + 1

    # -- ends -------------------------------------------------------------------------------------

    def _preempt(self, sequence: Sequence) -> None:
        self._leave_row(sequence)
        sequence.num_computed = 0
        sequence.status = Status.WAITING
        self.waiting.appendleft(sequence)
        self._counters.preemptions += 1

    def _finish(self, sequence: Sequence) -> None:
        if sequence.status is Status.RUNNING:
            self._leave_row(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED
        del self._live[sequence.request_id]

    def _leave_row(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._count_slots_used -= sequence.params.needs_counts
        self._freed_rows.append(sequence.row)
        self._free_rows.append(sequence.row)
        sequence.row = NO_ROW
        self.pool.release(sequence.block_ids)
        sequence.block_ids = []

    def _finish_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        params = sequence.params
        if token_id in sequence.stop_ids and sequence.num_output_tokens > params.min_tokens:
            return "stop"
        if sequence.num_output_tokens == params.max_tokens:
            return "length"
        if len(sequence.token_ids) >= self.config.max_model_len:
            return "length"
        return None


class _Counters:
    __slots__ = (
        "generation_tokens",
        "preemptions",
        "prefix_cache_hits",
        "prefix_cache_queries",
        "prompt_tokens",
        "step_tokens",
    )

    def __init__(self) -> None:
        self.preemptions = self.prefix_cache_queries = self.prefix_cache_hits = 0
        self.prompt_tokens = self.generation_tokens = self.step_tokens = 0
