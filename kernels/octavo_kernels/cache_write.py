"""Scatter this step's keys and values into their pages."""

from __future__ import annotations

import torch
from torch import Tensor

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

# Elements of keys that a program copies: 8 a thread of four warps, and as much of values.
_PROGRAM_ELEMENTS = 1024


@jit
def cache_write_kernel(
    key,  # [tokens, kv_heads, HEAD_SIZE]
    value,
    key_cache,  # [blocks, kv_heads, BLOCK_SIZE, HEAD_SIZE], written
    value_cache,
    slots,  # int64 [tokens]; -1: skip
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
    BLOCK_SIZE: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    TAKE: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """TAKE heads of one token a program. int64 throughout: a cache has more than 2^31 elements."""
    token = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    slot = tl.load(slots + token)
    if slot < 0:
        return
    block = slot // BLOCK_SIZE
    offset = slot % BLOCK_SIZE
    heads = tl.program_id(1).to(tl.int64) * TAKE + tl.arange(0, TAKE)[:, None]
    dims = tl.arange(0, HEAD_PAD)[None, :]
    mask = (heads < KV_HEADS) & (dims < HEAD_SIZE)
    k = tl.load(key + token * stride_kt + heads * stride_kh + dims, mask=mask, other=0.0)
    v = tl.load(value + token * stride_vt + heads * stride_vh + dims, mask=mask, other=0.0)
    k_place = block * stride_kcb + heads * stride_kch + offset * stride_kcs + dims
    v_place = block * stride_vcb + heads * stride_vch + offset * stride_vcs + dims
    tl.store(key_cache + k_place, k, mask=mask)
    tl.store(value_cache + v_place, v, mask=mask)


def _constants(block_size: int, kv_heads: int, head_size: int) -> dict[str, int]:
    head_pad = next_power_of_2(head_size)
    return {
        "BLOCK_SIZE": block_size,
        "KV_HEADS": kv_heads,
        "HEAD_SIZE": head_size,
        "TAKE": min(next_power_of_2(kv_heads), max(1, _PROGRAM_ELEMENTS // head_pad)),
        "HEAD_PAD": head_pad,
    }


def cache_write_triton(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    tokens = slots.shape[0]
    if tokens == 0:
        return
    _, kv_heads, block_size, head_size = key_cache.shape
    assert key.stride(2) == value.stride(2) == key_cache.stride(3) == value_cache.stride(3) == 1
    constants = _constants(block_size, kv_heads, head_size)
    cache_write_kernel[(tokens, cdiv(kv_heads, constants["TAKE"]))](
        key, value, key_cache, value_cache, slots, *key.stride()[:2], *value.stride()[:2],
        *key_cache.stride()[:3], *value_cache.stride()[:3],
        **constants, **launch_options(key_cache.device.index),
    )  # fmt: skip


def variants() -> list[Variant]:
    pointers = ("key", "value", "key_cache", "value_cache")
    strides = (
        "stride_kt", "stride_kh", "stride_vt", "stride_vh", "stride_kcb", "stride_kch",
        "stride_kcs", "stride_vcb", "stride_vch", "stride_vcs",
    )  # fmt: skip
    return [
        Variant(
            name=f"cache_write {dtype} kv_heads {kv_heads} head {head_size}",
            kernel=cache_write_kernel,
            signature={
                **dict.fromkeys(pointers, f"*{dtype}"),
                "slots": "*i64",
                **dict.fromkeys(strides, "i64"),
            },
            constants={**_constants(16, kv_heads, head_size), "PDL": False},
            divisible=(*pointers, "slots", *strides),
        )
        for dtype in TRITON_NAMES.values()
        for kv_heads, head_size in ((3, 64), (8, 128), (16, 256), (5, 80))
    ]


def cache_write_torch(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    _, kv_heads, block_size, head_size = key_cache.shape
    if slots.numel() == 0:
        return
    if int(slots.min()) < 0:  # padding; reading one number costs nothing on CPU
        keep = slots >= 0
        key, value, slots = key[keep], value[keep], slots[keep]
    block = slots // block_size
    first = block * (kv_heads * block_size) + (slots - block * block_size)  # row of head 0
    rows = first.unsqueeze(1) + torch.arange(0, kv_heads * block_size, block_size)
    rows = rows.view(-1)  # [tokens * kv_heads], rows of the cache seen as [.., head_size]
    key_cache.view(-1, head_size).index_copy_(0, rows, key.reshape(-1, head_size))
    value_cache.view(-1, head_size).index_copy_(0, rows, value.reshape(-1, head_size))
