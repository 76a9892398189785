"""Tensors of a checkpoint, known by name and shape before any is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's elements lie in a file: contiguous, little-endian, from byte `start` on."""

    path: Path
    start: int
    dtype: str  # torch's name


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """`name` and `shape` are as transformers' models have them; `read` may be called in any thread.

    `read` gives a CPU tensor of some floating dtype, which may be a view of a mapped file.
    `place` is None where the elements do not lie in a file as they are.
    """

    name: str
    shape: tuple[int, ...]
    stored_bytes: int
    read: Callable[[], Tensor]
    place: Place | None = None
