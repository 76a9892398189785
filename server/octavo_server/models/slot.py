"""Where a checkpoint's tensor goes: the views of weights that it fills, and with which part."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Piece:
    """`view` is filled with the tensor's elements from `starts` on, as many as it has."""

    view: Tensor
    starts: tuple[int, ...]  # one a dimension

    @property
    def index(self) -> tuple[slice, ...]:
        """What the tensor is indexed with to get this piece."""
        return tuple(
            slice(start, start + count)
            for start, count in zip(self.starts, self.view.shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Slot:
    """`shape` is the checkpoint's; no pieces: this rank needs nothing of the tensor."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def whole(view: Tensor) -> Slot:
    """The slot of a tensor that fills one view."""
    return Slot(tuple(view.shape), (Piece(view, (0,) * view.dim()),))
