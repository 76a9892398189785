"""Slices of logits, put together."""

from __future__ import annotations

import torch

from octavo_server.distributed.vocabulary import gather_logits


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


def test_gathered_logits_end_with_the_vocabulary() -> None:
    parts = [torch.full((2, 4), float(rank)) for rank in range(3)]
    found = gather_logits(Slices(parts), parts[0], 10)
    assert found.tolist() == [[0.0] * 4 + [1.0] * 4 + [2.0] * 2] * 2
