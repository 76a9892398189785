"""From the qkv product to attention: per-head norms, rotation, and keys and values to their pages."""

from __future__ import annotations

from torch import Tensor

from .cache_write import cache_write_torch, cache_write_triton
from .rms_norm import rms_norm_torch, rms_norm_triton
from .rotary import rotary_torch, rotary_triton


def rotary_cache_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    if query_norm is not None and key_norm is not None:
        query.copy_(rms_norm_triton(query, query_norm, eps))
        key = rms_norm_triton(key, key_norm, eps)
    rotary_triton(query, key, positions, cos_sin)
    cache_write_triton(key, value, key_cache, value_cache, slots)


def rotary_cache_torch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    if query_norm is not None and key_norm is not None:
        query.copy_(rms_norm_torch(query, query_norm, eps))
        key.copy_(rms_norm_torch(key, key_norm, eps))
    rotary_torch(query, key, positions, cos_sin)
    cache_write_torch(key, value, key_cache, value_cache, slots)
