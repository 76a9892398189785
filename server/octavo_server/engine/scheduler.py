"""Decides what each step computes: one token budget, no separate prefill and decode phases.

Each step gives every request some number of its uncomputed tokens: one for a request that decodes,
a chunk of the prompt for one that does not yet (Sarathi-Serve's stall-free batching, Agrawal et
al., OSDI 2024). First come, first served within a priority; when pages run out the youngest of the
last priority is preempted and later recomputed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter

from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.flight import Flight
from octavo_server.engine.messages import Add, EngineStats, FinishReason, TokenOutput
from octavo_server.engine.sequence import NO_ROW, Sequence, Status
from octavo_server.engine.step import NewRow, Sampled, Step
from octavo_server.engine.waiting import Waiting

COUNT_SLOTS = 64
"""Rows with penalties at a time: each costs 5 bytes per vocabulary id (48 MB for 152k ids)."""

QUEUE_STEPS = 8
"""Steps within which prompts that could start now are computed beside decoding streams: where many
wait for their first token, their wait counts for more than a few streams' next one. A prompt counts
for `max_mixed_tokens` at most: one long prompt is no queue, and up to 8 prompts change nothing.
"""

WATERMARK = 0.01
"""Share of pages kept free at admission, so that running rows can grow before anybody is preempted.
"""

_priority = attrgetter("priority")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """`max_step_tokens` bounds a step. While a stream decodes, a step takes `max_mixed_tokens` of
    prompts beside the decoding rows, and more only where more wait (`QUEUE_STEPS`): the stream
    waits for the whole step, so its inter-token latency is bounded by them.
    """

    max_model_len: int
    max_num_seqs: int
    max_step_tokens: int
    max_mixed_tokens: int
    block_size: int
    count_slots: int = COUNT_SLOTS


class Scheduler:
    """Owns the sequences and their pages.

    `schedule` hands out a step, `update` takes its results; up to two steps may be in flight, so
    that the device always has one to go on with. `abort` and `add` may come at any time between.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert config.max_num_seqs <= config.max_step_tokens, "all rows decode in one step"
        self.config = config
        self.pool = pool
        self.waiting = Waiting()
        # Oldest first; a dict for its O(1) removal: a batch of 500 may end in one step.
        self.running: dict[Sequence, None] = {}
        self._live: dict[str, Sequence] = {}
        self._clock = clock
        self._free_rows = list(range(config.max_num_seqs - 1, -1, -1))
        self._freed_rows: list[int] = []
        self._in_flight: deque[Flight] = deque()
        self._free_count_slots = config.count_slots
        self._watermark_blocks = int(pool.num_blocks * WATERMARK)
        self._counters = _Counters()

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self._in_flight)

    def add(self, request: Add) -> None:
        """Queue a validated request."""
        sequence = Sequence(request, self.config.max_model_len)
        fits = 0 < sequence.num_prompt_tokens < self.config.max_model_len
        assert fits, "validated by the caller"
        assert request.request_id not in self._live, "request ids are never reused"
        self._live[sequence.request_id] = sequence
        self.waiting.append(sequence)
        self._counters.added += 1

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests and free their pages; ids that are not live are ignored."""
        for request_id in request_ids:
            sequence = self._live.get(request_id)
            if sequence is not None:
                self._finish(sequence)

    def schedule(self) -> Step | None:
        """The next step, in flight from now on until `update` or `fail_steps`.

        None when there is nothing to compute, or nothing more before the oldest step in flight has
        been updated: its rows end with it, or somebody must be preempted, which needs every sample
        known.
        """
        decoding, prefilling = self._runnable()
        # A stream waits for the whole step; who does not stream gains more from a full one.
        watched = any(sequence.streams for sequence in decoding)
        budget = self.config.max_step_tokens
        if watched:
            budget = min(budget, len(decoding) + self._mixed_tokens(prefilling))
        short = self._may_run_short(decoding, prefilling, budget)
        if short and self._in_flight:
            return None
        flight = Flight(Step(self._freed_rows, [], [], [], [], [], []))
        preempted, starved = 0, False
        if not short:
            flight.give_decoding(decoding, self.pool, self.config.block_size)
            budget -= len(decoding)
        if short:  # the last in line may be preempted: it must not be in the step by then
            prefilling = sorted(decoding, key=_priority) + sorted(prefilling, key=_priority)
        for sequence in prefilling:
            count = min(sequence.num_uncomputed, budget)
            if (short and sequence.status is not Status.RUNNING) or not count:
                continue
            have = len(sequence.block_ids)
            if sequence.num_computed + count > have * self.config.block_size:
                fits, victims = self._grow(sequence, count, flight)
                preempted += victims
                if not fits:
                    starved = True
                    continue
                flight.step.appended_blocks.append((sequence.row, sequence.block_ids[have:]))
            flight.give(sequence, count)
            if count > 1:
                self._publish(sequence, flight)
            budget -= count
        # Nobody new while somebody who is here already goes without.
        if self.waiting and not preempted and not starved:
            self._take_new(flight, budget)
        if not flight.scheduled:
            assert self._in_flight or not self.has_work, "work that no step can take on"
            return None
        # NOTE: rows freed by preemption in this very pass are in the list too; a row is freed
        # before it is taken again because Step is applied in field order.
        self._freed_rows = []
        flight.step.shares = self.pool.num_shared > 0
        self._in_flight.append(flight)
        return flight.step

    def update(self, sampled: Sampled) -> list[TokenOutput]:
        """Append what the oldest step in flight drew; finish what ended. Rows that ended or were
        aborted meanwhile get nothing.
        """
        flight = self._in_flight.popleft()
        behind = self._in_flight[-1] if self._in_flight else None
        outputs: list[TokenOutput] = []
        drawn = 0
        now = self._clock()
        block_size = self.config.block_size
        running, logprobs = Status.RUNNING, None
        for index, sequence in enumerate(flight.scheduled):
            if sequence.status is not running:
                continue
            token_id = sampled.token_ids[index]
            if sampled.prompt_logprobs is not None and sequence.prompt_logprobs is not None:
                sequence.prompt_logprobs.extend(sampled.prompt_logprobs[index] or ())
            if token_id is None:
                continue
            drawn += 1
            sequence.num_pending -= 1
            token_ids = sequence.token_ids
            token_ids.append(token_id)
            known = len(token_ids)
            is_first = known == sequence.num_prompt_tokens + 1
            if is_first:
                self._counters.prompt_tokens += sequence.num_prompt_tokens
            if sampled.logprobs is not None:
                logprobs = sampled.logprobs[index]
            finish_reason: FinishReason | None = None
            if token_id in sequence.stop_ids and not sequence.holds_off_stops:
                finish_reason = "stop"
            elif known >= sequence.max_num_tokens:
                finish_reason = "length"
            output = None
            if sequence.streams:
                if is_first or logprobs is not None:
                    output = sequence.take_output(token_id, logprobs)
                else:
                    output = TokenOutput(sequence.request_id, [token_id])
                outputs.append(output)
            else:
                if logprobs is not None or sequence.first_token is None:
                    sequence.keep_output(logprobs, now)
                if finish_reason is not None:
                    output = sequence.take_whole_output()
                    outputs.append(output)
            if finish_reason is not None:
                assert output is not None
                output.finish_reason = finish_reason
                output.stop_token_id = token_id if finish_reason == "stop" else None
                self._finish(sequence)
            elif known // block_size > sequence.num_published:
                self._publish(sequence, behind)
        self._counters.generation_tokens += drawn
        self._counters.step_tokens += flight.step.num_tokens
        return outputs

    def fail_steps(self, message: str) -> list[TokenOutput]:
        """No step in flight ran to its end: their requests end with an error, their pages are not
        findable.
        """
        outputs = []
        while self._in_flight:
            flight = self._in_flight.popleft()
            for block in flight.published:
                self.pool.withdraw(block)
            for sequence in flight.scheduled:
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
            waiting_tokens=self.waiting.num_tokens,
            added=counters.added,
        )

    def check_integrity(self) -> None:
        """Assert the invariants that tie sequences, rows and pages together."""
        self.pool.check_integrity([sequence.block_ids for sequence in self._live.values()])
        rows = [sequence.row for sequence in self.running]
        assert len(set(rows) - {NO_ROW}) == len(rows), "a row has two sequences"
        assert len(rows) + len(self._free_rows) == self.config.max_num_seqs, "a row was lost"
        assert len(self._live) == len(self.running) + len(self.waiting), "a request was lost"
        assert self.waiting.num_tokens == sum(len(each.token_ids) for each in self.waiting)
        assert all(not sequence.block_ids for sequence in self.waiting), (
            "a waiting request holds pages"
        )

    # -- the parts of schedule() ------------------------------------------------------------------

    def _runnable(self) -> tuple[list[Sequence], list[Sequence]]:
        """Running sequences with one token to compute, and those with more."""
        decoding: list[Sequence] = []
        prefilling: list[Sequence] = []
        for sequence in self.running:
            known = len(sequence.token_ids) + sequence.num_pending
            uncomputed = known - sequence.num_computed
            if uncomputed == 1:
                # At its full length it only waits for its last sample to become known.
                if known < sequence.max_num_tokens:
                    decoding.append(sequence)
            elif uncomputed:
                prefilling.append(sequence)
        return decoding, prefilling

    def _mixed_tokens(self, prefilling: list[Sequence]) -> int:
        """Prompt tokens beside decoding streams."""
        most = self.config.max_mixed_tokens
        queued = sum(min(sequence.num_uncomputed, most) for sequence in prefilling)
        for sequence in self.waiting.startable(len(self._free_rows), self._free_count_slots):
            queued += min(len(sequence.token_ids), most)
        return max(most, queued // QUEUE_STEPS)

    def _may_run_short(
        self, decoding: list[Sequence], prefilling: list[Sequence], budget: int
    ) -> bool:
        """Whether the running sequences could ask for more pages in this step than are free."""
        size = self.config.block_size
        need = 0
        for sequence in prefilling:
            end = sequence.num_computed + min(sequence.num_uncomputed, budget)
            need += max(0, self._blocks_for(end) - len(sequence.block_ids))
        free = self.pool.num_free - need
        if len(decoding) <= free:
            return False  # the rule: not even if all of them came to a page's end
        return free < sum(each.num_computed == len(each.block_ids) * size for each in decoding)

    def _take_new(self, flight: Flight, budget: int) -> None:
        """Admit waiting sequences while there are budget, rows and pages for them."""
        promised = sum(map(self._owed_blocks, self.running))
        while budget and self._free_rows:
            sequence = self.waiting.first(self._free_count_slots)
            if sequence is None or not (count := self._admit(sequence, budget, promised)):
                break
            self.waiting.take(sequence)
            promised += self._owed_blocks(sequence)
            flight.step.new_rows.append(
                NewRow(
                    sequence.row,
                    sequence.token_ids[:],
                    sequence.num_prompt_tokens,
                    sequence.block_ids[:],
                    sequence.params,
                )
            )
            flight.give(sequence, count)
            if count > 1:
                self._publish(sequence, flight)
            budget -= count

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.config.block_size)

    def _owed_blocks(self, sequence: Sequence) -> int:
        """Pages for the rest of an admitted prompt; whoever comes later must leave them alone."""
        num_tokens = len(sequence.token_ids) + sequence.num_pending
        return max(0, self._blocks_for(num_tokens) - len(sequence.block_ids))

    def _grow(self, sequence: Sequence, count: int, flight: Flight) -> tuple[bool, int]:
        """Pages for `count` more tokens, preempting the last in line not yet in this step if need
        be.

        Returns whether the sequence can be computed now, and how many were preempted.
        """
        need = self._blocks_for(sequence.num_computed + count) - len(sequence.block_ids)
        preempted = 0
        while need > self.pool.num_free:
            victim = self._last_unscheduled(flight)
            if victim is sequence and sequence.num_uncomputed > 1:
                assert flight.scheduled, "one sequence of max_model_len always fits an empty pool"
                # Rows of this step will end or be preempted; waiting keeps what is computed.
                return False, preempted
            self._preempt(victim)
            preempted += 1
            if victim is sequence:
                return False, preempted
        sequence.block_ids += self.pool.allocate(max(need, 0))
        return True, preempted

    def _last_unscheduled(self, flight: Flight) -> Sequence:
        """The youngest of those whose priority comes last."""
        scheduled = set(flight.scheduled)
        return max(
            (each for each in reversed(self.running) if each not in scheduled), key=_priority
        )

    def _admit(self, sequence: Sequence, budget: int, promised: int) -> int:
        """Give a waiting sequence a row, its cached prefix, its first pages; 0 if it must wait."""
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
        self._free_count_slots -= sequence.needs_counts
        if sequence.cached_tokens is None:
            sequence.cached_tokens = min(cached, sequence.num_prompt_tokens)
            sequence.scheduled = self._clock()
            self._counters.prefix_cache_queries += sequence.num_prompt_tokens
            self._counters.prefix_cache_hits += sequence.cached_tokens
        if sequence.prompt_logprobs is not None:
            sequence.prompt_logprobs = [None]
        self.running[sequence] = None
        return count

    def _publish(self, sequence: Sequence, flight: Flight | None) -> None:
        """Make full blocks findable whose ids are known and which are computed, by `flight` at the
        latest (None: by steps that have ended).

        NOTE: a prompt's blocks are findable before they are computed: in each layer all keys of a
        step are written before any of its rows attends, so a request admitted later in this same
        pass may hit.
        """
        size = self.config.block_size
        full = min(len(sequence.token_ids), sequence.num_computed) // size
        if full <= sequence.num_published:
            return
        hashes = sequence.extend_hashes(size)
        for index in range(sequence.num_published, full):
            block = sequence.block_ids[index]
            if self.pool.publish(block, hashes[index]) and flight is not None:
                flight.published.append(block)
        sequence.num_published = full

    # -- ends -------------------------------------------------------------------------------------

    def _preempt(self, sequence: Sequence) -> None:
        assert not sequence.num_pending, "preempted before its sample was known"
        self._leave_row(sequence)
        sequence.num_computed = 0
        sequence.status = Status.WAITING
        self.waiting.put_back(sequence)
        self._counters.preemptions += 1

    def _finish(self, sequence: Sequence) -> None:
        if sequence.status is Status.RUNNING:
            self._leave_row(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED
        del self._live[sequence.request_id]

    def _leave_row(self, sequence: Sequence) -> None:
        del self.running[sequence]
        self._free_count_slots += sequence.needs_counts
        self._freed_rows.append(sequence.row)
        self._free_rows.append(sequence.row)
        sequence.row = NO_ROW
        self.pool.release(sequence.block_ids)
        sequence.block_ids = []


@dataclass(slots=True)
class _Counters:
    preemptions: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    step_tokens: int = 0
    added: int = 0
