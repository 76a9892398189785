"""Stateless Gumbel(0, 1) noise: a hash of (seed, position, id), the same on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from .language import fast_log2, jit, tl

# splitmix64's finaliser (Steele, Lea, Flood 2014) makes two 32-bit keys of (seed, position);
# lowbias32 (Wellons 2018) with a key mixed into its middle makes 31 bits of (keys, id).
_GOLDEN_64 = 0x9E3779B97F4A7C15
_MIX_64 = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_GOLDEN_32 = 0x9E3779B9
_MIX_32 = (0x7FEB352D, 0x846CA68B)
# Largest v below 1 in float32: keeps -log(1 - v) finite.
_LARGEST_UNIFORM = 1.0 - 2.0**-24


@jit
def _mix_64_triton(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@jit
def gumbel_log2(seed, position, ids):
    """`gumbel_noise` of one row in units of log 2, less a constant: log2(e) g + log2(log(2)).

    int64 scalars, int32 ids of any shape -> float32. For an argmax that is as good, and it spares
    two products. A GPU has one instruction for log2 (off by 2^-22 near 1, elsewhere by 2 ulp), but
    twenty for log.
    """
    key = _mix_64_triton(seed.to(tl.uint64) + 0x9E3779B97F4A7C15)
    key = _mix_64_triton(key + position.to(tl.uint64))
    low = (key & 0xFFFFFFFF).to(tl.uint32)
    high = (key >> 32).to(tl.uint32)
    x = ids.to(tl.uint32) * 0x9E3779B9 + low
    x = (x ^ (x >> 16)) * 0x7FEB352D
    # x ^= high, then x ^= x >> 15; what is the same for all ids is computed once.
    x = (x ^ (x >> 15) ^ (high ^ (high >> 15))) * 0x846CA68B
    x = x ^ (x >> 16)
    v = (x & 0x7FFFFFFF).to(tl.int32).to(tl.float32) * 4.656612873077393e-10  # 2^-31
    v = tl.minimum(v + 2.3283064365386963e-10, 0.9999999403953552)  # 2^-32; 1 - 2^-24
    # -log2(1 - v). 1 - v drops the low bits of a small v, which decide the largest noises, and
    # log2 near 1 is off by 2^-22: below 1/32 a series instead, to v^5.
    series = 0.3606737602222409 + v * 0.28853900817779268
    series = 1.4426950408889634 + v * (0.7213475204444817 + v * (0.4808983469629878 + v * series))
    waited = tl.where(v < 0.03125, v * series, -fast_log2(1.0 - v))
    return -fast_log2(waited)


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def _shift_right(x: Tensor, by: int, bits: int) -> Tensor:
    """Logical shift of a signed integer tensor."""
    return (x >> by).bitwise_and_((1 << (bits - by)) - 1)


def _mix_64(x: Tensor) -> Tensor:
    for shift, factor in ((30, _MIX_64[0]), (27, _MIX_64[1])):
        x = (x ^ _shift_right(x, shift, 64)) * _signed(factor, 64)
    return x ^ _shift_right(x, 31, 64)


def _row_keys(seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Two int32 `[rows]` keys from int64 seeds and positions."""
    mixed = _mix_64(_mix_64(seeds + _signed(_GOLDEN_64, 64)) + positions)
    low = mixed & 0xFFFFFFFF
    high = _shift_right(mixed, 32, 64)
    return _as_int32(low), _as_int32(high)


def _as_int32(x: Tensor) -> Tensor:
    """Low 32 bits of int64 values in [0, 2^32), reinterpreted as int32."""
    return torch.where(x >= 1 << 31, x - (1 << 32), x).to(torch.int32)


def gumbel_noise(seeds: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """Gumbel(0, 1) noise float32 `[rows, n]` for ids int32 `[n]` or `[rows, n]`."""
    low, high = _row_keys(seeds, positions)
    x = (ids * _signed(_GOLDEN_32, 32)) + low.unsqueeze(1)
    x ^= _shift_right(x, 16, 32)
    x *= _MIX_32[0]
    x ^= high.unsqueeze(1)
    x ^= _shift_right(x, 15, 32)
    x *= _signed(_MIX_32[1], 32)
    x ^= _shift_right(x, 16, 32)
    v = x.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_(max=_LARGEST_UNIFORM)
    return v.neg_().log1p_().neg_().log_().neg_()  # -log(-log(1 - v))
