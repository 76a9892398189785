"""Random weights for speed runs, where values do not matter but zeros would (they save power)."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from octavo_server.errors import InvalidSettings
from octavo_server.models.causal_lm import CausalLM
from octavo_server.models.slot import Piece

_BOUND = 1e-3
_SEEDS = 2**63
_BITS = 14
"""Of a value: the smallest, 6e-8, is not zero in float16 either."""

_CHUNK = {"cpu": 1 << 16, "cuda": 1 << 25}
"""Elements at a time, 4 bytes each: what a core's L2 holds, and what keeps a GPU's launches few."""


def fill_dummy(model: CausalLM, seed: int) -> None:
    """Every weight uniform in +-1e-3, never zero, the same for the same seed.

    An element is a hash of its tensor, row and column in a checkpoint: ranks of a group get the
    shares of one model. Raises InvalidSettings for a seed that does not fit 64 bits.
    """
    if not -_SEEDS <= seed < _SEEDS:
        raise InvalidSettings(f"--seed {seed} does not fit a signed 64-bit integer")
    for name, slot in model.slots().items():
        key = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
        for piece in slot.pieces:
            _fill(piece, int.from_bytes(key[:4], "little"), int.from_bytes(key[4:], "little"))


def _fill(piece: Piece, row_key: int, column_key: int) -> None:
    view = piece.view
    assert view.dim() <= 2
    rows = _hashes(piece.starts[0], len(view), row_key, view.device)
    width = math.prod(view.shape[1:])
    columns = _hashes(sum(piece.starts[1:]), width, column_key, view.device)
    step = max(1, _CHUNK[view.device.type] // max(1, width))
    for first in range(0, len(view), step):
        part = view[first : first + step]
        values = _mix(rows[first : first + step, None] ^ columns)
        values >>= 32 - _BITS
        scaled = values.float().add_(0.5).mul_(_BOUND * 2.0 ** (1 - _BITS))
        part.copy_(scaled.view(part.shape))


def _hashes(first: int, count: int, key: int, device: torch.device) -> Tensor:
    """int32 `[count]`, one for each of the numbers from `first` on; key has 32 bits."""
    numbers = torch.arange(first, first + count, dtype=torch.int64, device=device)
    mixed = (numbers * 0x9E3779B9 + key) & 0xFFFFFFFF
    return _mix((mixed - (mixed >> 31 << 32)).to(torch.int32))


def _mix(x: Tensor) -> Tensor:
    """Scramble int32s in place, one to one: lowbias32 (Wellons 2018)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32)), (16, 1)):
        x ^= (x >> shift) & ((1 << (32 - shift)) - 1)
        if factor != 1:
            x *= factor
    return x
