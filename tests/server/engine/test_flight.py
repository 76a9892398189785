from __future__ import annotations

from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.flight import Flight
from octavo_server.engine.messages import Add
from octavo_server.engine.sequence import Sequence
from octavo_server.engine.step import Step
from octavo_server.sampling_params import SamplingParams

BLOCK = 4


def decoding(pool: BlockPool, lengths: list[int]) -> list[Sequence]:
    """Sequences of which all but the last token are computed, on rows 0, 1, ..."""
    made = []
    for row, length in enumerate(lengths):
        sequence = Sequence(Add(str(row), [1] * length, SamplingParams(), 0.0), 64)
        sequence.row, sequence.num_computed = row, length - 1
        sequence.block_ids = pool.allocate(-(-(length - 1) // BLOCK))
        made.append(sequence)
    return made


def test_decoding_rows_at_once_get_what_each_alone_would() -> None:
    lengths = [4, 5, 6, 9]
    pools = BlockPool(20), BlockPool(20)
    rows = decoding(pools[0], lengths), decoding(pools[1], lengths)
    together, alone = (Flight(Step([], [], [], [], [], [], [])) for _ in pools)
    together.give_decoding(rows[0], pools[0], BLOCK)
    for sequence in rows[1]:
        if sequence.num_computed == len(sequence.block_ids) * BLOCK:
            blocks = pools[1].allocate(1)
            sequence.block_ids += blocks
            alone.step.appended_blocks.append((sequence.row, blocks))
        alone.give(sequence, 1)
    assert together.step == alone.step
    assert [row for row, _ in together.step.appended_blocks] == [1, 3]
    assert together.scheduled == rows[0]
    for one, other in zip(*rows, strict=True):
        assert one.block_ids == other.block_ids
        assert (one.num_computed, one.num_pending) == (other.num_computed, other.num_pending)
