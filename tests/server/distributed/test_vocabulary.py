"""Which id wins over slices of a vocabulary."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_server.distributed.group import SOLO
from octavo_server.distributed.vocabulary import best, candidates, gather_logits, winners

_VALUES = st.floats(width=32, allow_nan=False)


class Slices:
    """Rank 0 of a group whose others' tensors are known; takes the gathered one as given."""

    rank = 0

    def __init__(self, parts: list[torch.Tensor]) -> None:
        self.size, self._parts = len(parts), parts

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        assert torch.equal(x, self._parts[0])
        return torch.cat(self._parts, dim=1)

    def all_reduce_(self, x: torch.Tensor) -> None:
        raise AssertionError

    def add_sum_(self, residual: torch.Tensor, partial: torch.Tensor) -> None:
        raise AssertionError

    def close(self) -> None:
        pass


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(_VALUES, st.integers(0, 2**31 - 1)), min_size=2, max_size=8))
def test_candidates_compare_as_value_then_lowest_id(found: list[tuple[float, int]]) -> None:
    packed = candidates(
        torch.tensor([value for value, _ in found], dtype=torch.float32),
        torch.tensor([token_id for _, token_id in found]),
    )
    expected = max(found, key=lambda pair: (pair[0], -pair[1]))
    assert winners(SOLO, packed.max()[None]).tolist() == [expected[1]]


def test_zeros_are_equal_and_infinities_are_ends() -> None:
    values = torch.tensor([-math.inf, -0.0, 0.0, 1e-45, math.inf])
    packed = candidates(values, torch.tensor([9, 9, 9, 9, 9])).tolist()
    assert packed[1] == packed[2]
    assert packed[0] < packed[1] < packed[3] < packed[4]


def test_the_best_of_slices_is_the_best_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    # Few distinct values: the best one is nearly always there several times.
    logits = torch.randint(-3, 3, (500, 24), generator=generator).bfloat16()
    logits[0] = -math.inf  # every id banned: any answer, the same on all ranks
    slices = [part.contiguous() for part in logits.split(8, dim=1)]
    own = [best(part, 8 * rank)[:, None] for rank, part in enumerate(slices)]
    group = Slices(own)
    assert torch.equal(winners(group, own[0][:, 0]), logits.argmax(1))


def test_gathered_logits_end_with_the_vocabulary() -> None:
    parts = [torch.full((2, 4), float(rank)) for rank in range(3)]
    found = gather_logits(Slices(parts), parts[0], 10)
    assert found.tolist() == [[0.0] * 4 + [1.0] * 4 + [2.0] * 2] * 2
