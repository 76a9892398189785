"""Tensors of a checkpoint, known by name and shape before any is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """`name` and `shape` are as transformers' models have them; `read` may be called in any thread.

    `read` gives a CPU tensor of some floating dtype, which may be a view of a mapped file.
    """

    name: str
    shape: tuple[int, ...]
    stored_bytes: int
    read: Callable[[], Tensor]
