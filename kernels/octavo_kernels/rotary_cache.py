"""From the qkv product to attention: per-head norms, rotation, and keys and values to their pages.

On a GPU one launch: a program has a few heads of one token, queries or keys with their values. What
`rms_norm`, `rotary` and `cache_write` would round on the way is rounded here too.
"""

from __future__ import annotations

from torch import Tensor

from .cache_write import cache_write_torch
from .language import (
    TRITON_NAMES,
    Variant,
    cdiv,
    gdc_launch_dependents,
    gdc_wait,
    jit,
    launch_options,
    next_power_of_2,
    tl,
)
from .rms_norm import rms_norm_torch
from .rotary import rotary_torch

# Tokens from which on a program takes all the heads it can: below, the heads are spread so that one
# token's latency is one head's.
_MANY_TOKENS = 128
# Elements of the heads that a program then takes: 32 a thread of four warps.
_PROGRAM_ELEMENTS = 4096


@jit
def rotary_cache_kernel(
    query,  # [tokens, HEADS, HEAD_SIZE], written
    key,  # [tokens, KV_HEADS, HEAD_SIZE]
    value,
    key_cache,  # [blocks, KV_HEADS, BLOCK_SIZE, HEAD_SIZE], written
    value_cache,
    slots,  # int64 [tokens]; -1: no page
    positions,  # int64 [tokens]
    cos_sin,  # float32 [max_positions, 2 * HALF]: cos, then sin
    query_norm,  # [HEAD_SIZE]; ignored unless HAS_NORM
    key_norm,
    eps,
    stride_qt: tl.int64,
    stride_qh: tl.int64,
    stride_kt: tl.int64,
    stride_kh: tl.int64,
    stride_vt: tl.int64,
    stride_vh: tl.int64,
    stride_kcb: tl.int64,
    stride_kch: tl.int64,
    stride_kcs: tl.int64,
    stride_vcb: tl.int64,
    stride_vch: tl.int64,
    stride_vcs: tl.int64,
    stride_cs: tl.int64,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    REST_PAD: tl.constexpr,  # covers the dimensions past 2 * HALF; 0: there are none
    BLOCK_SIZE: tl.constexpr,
    TAKE: tl.constexpr,  # heads of a program
    HAS_NORM: tl.constexpr,
    PDL: tl.constexpr,
):
    """int64 throughout: a cache has more than 2^31 elements."""
    token = tl.program_id(0).to(tl.int64)
    QUERY_PROGRAMS: tl.constexpr = (HEADS + TAKE - 1) // TAKE
    program = tl.program_id(1)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    angles = cos_sin + tl.load(positions + token) * stride_cs
    if program < QUERY_PROGRAMS:
        heads = program * TAKE + tl.arange(0, TAKE)[:, None].to(tl.int64)
        place = query + token * stride_qt + heads * stride_qh
        _rotate_heads(
            place, place, heads < HEADS, query_norm, eps, angles,
            HEAD_SIZE, HALF, HALF_PAD, REST_PAD, HAS_NORM,
        )  # fmt: skip
    else:
        slot = tl.load(slots + token)
        if slot >= 0:
            block = slot // BLOCK_SIZE
            offset = slot % BLOCK_SIZE
            heads = (program - QUERY_PROGRAMS) * TAKE + tl.arange(0, TAKE)[:, None].to(tl.int64)
            valid = heads < KV_HEADS
            dims = tl.arange(0, HEAD_PAD)[None, :]
            mask = valid & (dims < HEAD_SIZE)
            v = tl.load(value + token * stride_vt + heads * stride_vh + dims, mask=mask, other=0.0)
            v_place = value_cache + block * stride_vcb + heads * stride_vch + offset * stride_vcs
            tl.store(v_place + dims, v, mask=mask)
            _rotate_heads(
                key + token * stride_kt + heads * stride_kh,
                key_cache + block * stride_kcb + heads * stride_kch + offset * stride_kcs,
                valid, key_norm, eps, angles,
                HEAD_SIZE, HALF, HALF_PAD, REST_PAD, HAS_NORM,
            )  # fmt: skip


@jit
def _rotate_heads(
    source,  # [TAKE, 1]: where each head starts
    target,
    valid,  # [TAKE, 1]
    norm,
    eps,
    angles,
    HEAD_SIZE: tl.constexpr,
    HALF: tl.constexpr,
    HALF_PAD: tl.constexpr,
    REST_PAD: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    dims = tl.arange(0, HALF_PAD)[None, :]
    dim_valid = dims < HALF
    mask = valid & dim_valid
    cos = tl.load(angles + dims, mask=dim_valid, other=0.0)
    sin = tl.load(angles + HALF + dims, mask=dim_valid, other=0.0)
    dtype = target.dtype.element_ty
    a = tl.load(source + dims, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(source + HALF + dims, mask=mask, other=0.0).to(tl.float32)
    if REST_PAD:
        rest_dims = 2 * HALF + tl.arange(0, REST_PAD)[None, :]
        rest_mask = valid & (rest_dims < HEAD_SIZE)
        rest = tl.load(source + rest_dims, mask=rest_mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(a * a + b * b, 1, keep_dims=True)
        if REST_PAD:
            squares += tl.sum(rest * rest, 1, keep_dims=True)
        inverse = 1.0 / tl.sqrt(squares / HEAD_SIZE + eps)
        factor_a = tl.load(norm + dims, mask=dim_valid, other=0.0).to(tl.float32)
        factor_b = tl.load(norm + HALF + dims, mask=dim_valid, other=0.0).to(tl.float32)
        a = (a * inverse * factor_a).to(dtype).to(tl.float32)
        b = (b * inverse * factor_b).to(dtype).to(tl.float32)
        if REST_PAD:
            factor = tl.load(norm + rest_dims, mask=rest_dims < HEAD_SIZE, other=0.0)
            rest = rest * inverse * factor.to(tl.float32)
    tl.store(target + dims, (a * cos - b * sin).to(dtype), mask=mask)
    tl.store(target + HALF + dims, (b * cos + a * sin).to(dtype), mask=mask)
    if REST_PAD:
        tl.store(target + rest_dims, rest.to(dtype), mask=rest_mask)


def _constants(
    tokens: int, heads: int, kv_heads: int, head_size: int, half: int, block_size: int
) -> dict[str, int]:
    pad = next_power_of_2(head_size)
    take = max(1, _PROGRAM_ELEMENTS // pad) if tokens >= _MANY_TOKENS else 1
    rest = head_size - 2 * half
    return {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "HEAD_SIZE": head_size,
        "HEAD_PAD": pad,
        "HALF": half,
        "HALF_PAD": next_power_of_2(half),
        "REST_PAD": next_power_of_2(rest) if rest else 0,
        "BLOCK_SIZE": block_size,
        "TAKE": min(take, next_power_of_2(heads)),
    }


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
    tokens, heads, head_size = query.shape
    if tokens == 0:
        return
    _, kv_heads, block_size, _ = key_cache.shape
    assert query.stride(2) == key.stride(2) == value.stride(2) == cos_sin.stride(1) == 1
    assert key_cache.stride(3) == value_cache.stride(3) == 1
    assert (query_norm is None) == (key_norm is None)
    constants = _constants(tokens, heads, kv_heads, head_size, cos_sin.shape[1] // 2, block_size)
    take = constants["TAKE"]
    rotary_cache_kernel[(tokens, cdiv(heads, take) + cdiv(kv_heads, take))](
        query, key, value, key_cache, value_cache, slots, positions, cos_sin,
        cos_sin if query_norm is None else query_norm, cos_sin if key_norm is None else key_norm,
        eps, *query.stride()[:2], *key.stride()[:2], *value.stride()[:2],
        *key_cache.stride()[:3], *value_cache.stride()[:3], cos_sin.stride(0),
        **constants, HAS_NORM=query_norm is not None, num_warps=4 if take > 1 else 1,
        **launch_options(query.device.index),
    )  # fmt: skip


def variants() -> list[Variant]:
    tensors = ("query", "key", "value", "key_cache", "value_cache", "query_norm", "key_norm")
    strides = tuple(key for key in rotary_cache_kernel.arg_names if key.startswith("stride_"))
    return [
        Variant(
            name=f"rotary_cache {dtype} heads {heads}/{kv_heads} of {head_size} tokens {tokens}"
            + " norm" * has_norm,
            kernel=rotary_cache_kernel,
            signature={
                **dict.fromkeys(tensors, f"*{dtype}"), "slots": "*i64", "positions": "*i64",
                "cos_sin": "*fp32", "eps": "fp32", **dict.fromkeys(strides, "i64"),
            },
            constants={
                **_constants(tokens, heads, kv_heads, head_size, half, 16),
                "HAS_NORM": has_norm, "PDL": False,
            },
            divisible=(*tensors, "slots", "positions", "cos_sin", *strides),
            warps=1 if tokens == 1 else 4,
        )
        for dtype in TRITON_NAMES.values()
        for heads, kv_heads, head_size, half, has_norm in (
            (9, 3, 64, 32, False), (16, 8, 128, 64, True), (5, 1, 80, 16, True),
        )
        for tokens in (1, _MANY_TOKENS)
    ]  # fmt: skip


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
