"""A runner with no model: its KV cache holds, per slot, the whole prefix that a real one would
encode.

Writing precedes reading, as in each layer of a real step, and every read is checked: a page written
by two requests, evicted too early, or hit with the wrong prefix shows up as a wrong prefix in a
slot. The token it draws is a pure function of the prefix, so any schedule must give any request the
same output.
"""

from __future__ import annotations

import zlib

from octavo_server.engine.messages import TokenLogprobs
from octavo_server.engine.scheduler import SchedulerConfig
from octavo_server.engine.step import NewRow, Sampled, Step

VOCAB = 7


def chain(previous: int, token_id: int) -> int:
    return zlib.crc32(token_id.to_bytes(4, "little"), previous)


def next_token(prefix: list[int]) -> int:
    """What the "model" says after these tokens."""
    state = 0
    for token_id in prefix:
        state = chain(state, token_id)
    return state % VOCAB


def expected_output(
    prompt: list[int], max_tokens: int, stop_ids: frozenset[int], min_tokens: int, max_len: int
) -> list[int]:
    """The output that any correct schedule gives this request."""
    tokens = list(prompt)
    output: list[int] = []
    while True:
        token_id = next_token(tokens)
        output.append(token_id)
        tokens.append(token_id)
        stopped = token_id in stop_ids and len(output) > min_tokens
        if stopped or len(output) == max_tokens or len(tokens) >= max_len:
            return output


class RecordingRunner:
    """Executes steps against the recorded cache and checks every slot that a row may read.

    Like a device it knows each sample at once; the scheduler learns of it when it waits.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.tokens: dict[int, list[int]] = {}  # row -> known ids, own samples included
        self.new: dict[int, NewRow] = {}
        self.blocks: dict[int, list[int]] = {}
        self.content: dict[int, int] = {}
        self.steps = 0
        self.computed_tokens = 0
        self.most_tokens_in_a_step = 0

    def launch(self, step: Step) -> Sampled:
        self._apply(step)
        self._check(step)
        chains = [self._chain(row, start + count) for row, start, count in _spans(step)]
        written: dict[int, tuple[int, int]] = {}
        for (row, start, count), states in zip(_spans(step), chains, strict=True):
            for position in range(start, start + count):
                slot = self._slot(row, position)
                assert slot not in written, (
                    f"rows {written[slot]} and {(row, position)} write one slot"
                )
                written[slot] = (row, position)
                self.content[slot] = states[position]
        for (row, start, count), states in zip(_spans(step), chains, strict=True):
            for position in range(start + count):
                slot = self._slot(row, position)
                assert self.content.get(slot) == states[position], f"row {row} reads a foreign page"
        self.steps += 1
        self.computed_tokens += step.num_tokens
        self.most_tokens_in_a_step = max(self.most_tokens_in_a_step, step.num_tokens)
        return self._sample(step, chains)

    def wait(self, launched: Sampled) -> Sampled:
        return launched

    def _apply(self, step: Step) -> None:
        for row in step.freed_rows:
            for known in (self.tokens, self.new, self.blocks):
                known.pop(row, None)  # type: ignore[attr-defined]
        for new in step.new_rows:
            assert new.row not in self.new, "a row is taken twice"
            self.new[new.row] = new
            self.tokens[new.row] = list(new.token_ids)
            self.blocks[new.row] = list(new.block_ids)
        for row, blocks in step.appended_blocks:
            assert row in step.rows, "pages for a row that is not in the step"
            self.blocks[row] += blocks

    def _sample(self, step: Step, chains: list[list[int]]) -> Sampled:
        token_ids: list[int | None] = []
        prompt_logprobs: list[list[TokenLogprobs] | None] = []
        for index, (row, start, count) in enumerate(_spans(step)):
            judged = None
            new = self.new[row]
            if new.params.prompt_logprobs is not None:
                last = min(start + count, new.num_prompt_tokens - 1)
                targets = self.tokens[row][start + 1 : last + 1]
                judged = [TokenLogprobs(token_id, 0.0, 1, [], []) for token_id in targets]
            token_id = chains[index][-1] % VOCAB if step.samples[index] else None
            if token_id is not None and len(self.tokens[row]) < self.config.max_model_len:
                self.tokens[row].append(token_id)
            token_ids.append(token_id)
            prompt_logprobs.append(judged)
        return Sampled(token_ids, None, prompt_logprobs)

    def _chain(self, row: int, length: int) -> list[int]:
        states, state = [], 0
        for token_id in self.tokens[row][:length]:
            state = chain(state, token_id)
            states.append(state)
        return states

    def _slot(self, row: int, position: int) -> int:
        block = self.blocks[row][position // self.config.block_size]
        assert block != 0, "the null block is nobody's"
        return block * self.config.block_size + position % self.config.block_size

    def _check(self, step: Step) -> None:
        assert len(set(step.rows)) == len(step.rows), "a row is scheduled twice"
        for index, (row, start, count) in enumerate(_spans(step)):
            known = len(self.tokens[row])
            assert count > 0 and start + count <= known, "more tokens than are known"
            assert step.samples[index] == (start + count == known)


def _spans(step: Step) -> list[tuple[int, int, int]]:
    return list(zip(step.rows, step.starts, step.counts, strict=True))
