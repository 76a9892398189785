"""What a model asks of the ranks that compute it together; `Solo` for one rank, at no cost.

Every rank calls the same collectives in the same order, with tensors of the same shape and dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from torch import Tensor


class Group(Protocol):
    """One rank's end of the group."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_reduce_(self, x: Tensor) -> None:
        """x becomes the sum of all ranks' x, the same bits on each."""

    def add_sum_(self, residual: Tensor, partial: Tensor) -> None:
        """`residual += sum of all ranks' partial`, in place; partial is used up.

        residual float32, the same on all ranks before and after; partial of its shape, in the
        model's dtype: that is what travels.
        """

    def all_gather(self, x: Tensor) -> Tensor:
        """`[rows, n] -> [rows, size * n]`: every rank's columns, in the order of ranks."""

    def close(self) -> None:
        """Leave the group; nothing is sent afterwards."""


class Solo:
    """The group of a model on one device."""

    rank: Final = 0
    size: Final = 1

    def all_reduce_(self, x: Tensor) -> None:
        pass

    def add_sum_(self, residual: Tensor, partial: Tensor) -> None:
        residual += partial

    def all_gather(self, x: Tensor) -> Tensor:
        return x

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Alone:
    """A rank whose peers are not there: shapes and launches are a rank's, sums and gathered values
    are not.

    For compiling kernels ahead, measuring one rank and looking at one rank's weights.
    """

    rank: int
    size: int

    def all_reduce_(self, x: Tensor) -> None:
        pass

    def add_sum_(self, residual: Tensor, partial: Tensor) -> None:
        residual += partial

    def all_gather(self, x: Tensor) -> Tensor:
        return x.repeat(1, self.size)

    def close(self) -> None:
        pass


SOLO: Final = Solo()
