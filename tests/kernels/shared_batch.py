"""Paged batches in which groups of sequences begin with the same pages."""

from __future__ import annotations

import random
from typing import Any

from .paged_batch import PagedBatch, make_batch

# Pages that a group shares, and each member's tokens behind them.
Groups = list[tuple[int, list[int]]]


def make_shared_batch(
    groups: Groups,
    loners: list[int] | tuple[int, ...] = (),
    *,
    padded_rows: int = 0,
    prompts: tuple[int, ...] = (),
    block_size: int = 16,
    seed: int = 0,
    **shape: Any,
) -> tuple[PagedBatch, list[tuple[int, int]]]:
    """A decode batch in random order, and each decoding sequence's (group, keys that it shares);
    a loner's group is -1. Pages that sharing leaves to nobody are NaN. `prompts` are longer queries
    behind; padded_rows, without token or context, come last."""
    wanted = [
        (number, pages * block_size, pages * block_size + own)
        for number, (pages, members) in enumerate(groups)
        for own in members
    ]
    wanted += [(-1, 0, context) for context in loners]
    random.Random(seed).shuffle(wanted)
    batch = make_batch(
        [1] * len(wanted) + list(prompts) + [0] * padded_rows,
        [context for _, _, context in wanted] + list(prompts) + [0] * padded_rows,
        block_size=block_size,
        seed=seed,
        **shape,
    )
    leaders: dict[int, int] = {}
    for seq, (group, keys, _) in enumerate(wanted):
        pages, row = keys // block_size, int(batch.rows[seq])
        leader = leaders.setdefault(group, row)
        if group >= 0 and leader != row:
            unused = batch.block_tables[row, :pages].long()
            batch.key_cache[unused] = batch.value_cache[unused] = float("nan")
            batch.block_tables[row, :pages] = batch.block_tables[leader, :pages]
    return batch, [(group, keys) for group, keys, _ in wanted]
