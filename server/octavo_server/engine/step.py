"""What the scheduler tells every rank to compute, and what comes back.

A `Step` is a difference: ranks keep each row's tokens, pages and sampling parameters between steps,
so a decode step of 512 rows is a few kilobytes.
"""

from __future__ import annotations

import msgspec

from octavo_server.engine.messages import TokenLogprobs
from octavo_server.sampling_params import SamplingParams


class NewRow(msgspec.Struct, array_like=True):
    """A sequence takes a row: `token_ids` are all it has (after a preemption, also what it
    generated).
    """

    row: int
    token_ids: list[int]
    num_prompt_tokens: int
    block_ids: list[int]
    params: SamplingParams


class Step(msgspec.Struct, array_like=True):
    """One forward pass. Apply in field order: rows freed, rows taken, pages appended, then compute.

    For scheduled row `rows[i]`, tokens `[starts[i], starts[i] + counts[i])` are computed;
    `samples[i]` says that they reach the end of its known tokens, so that a new token is drawn.
    The last token of a row may be one that only the device knows, the previous step's sample.
    Decode rows come first, so that the batch splits into a decode part and a rest without a sort.
    `appended_blocks` names rows of this step only. `shares`: two of its rows may have a page in
    common.
    """

    freed_rows: list[int]
    new_rows: list[NewRow]
    appended_blocks: list[tuple[int, list[int]]]
    rows: list[int]
    starts: list[int]
    counts: list[int]
    samples: list[bool]
    shares: bool = True

    @property
    def num_tokens(self) -> int:
        return sum(self.counts)


class Sampled(msgspec.Struct, array_like=True):
    """Results of a step, in its row order; None where nothing was asked.

    `token_ids[i]` is None where `samples[i]` was False. `prompt_logprobs[i]` judges the prompt
    tokens after each computed position: tokens `starts[i] + 1 ...`, cut at the prompt's end. The
    lists of log probabilities are None where no row asked.
    """

    token_ids: list[int] | list[int | None]
    logprobs: list[TokenLogprobs | None] | None = None
    prompt_logprobs: list[list[TokenLogprobs] | None] | None = None
