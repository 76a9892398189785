"""Rotary position embedding, halves style (NeoX), in place.

With c, s = cos and sin of position * inverse_frequency: (a, b) -> (a c - b s, b c + a s), where a
and b are the two halves of the first rotary_size dimensions of a head (Su et al. 2021).
"""

from __future__ import annotations

from torch import Tensor

from .language import TRITON_NAMES, Variant, jit, next_power_of_2, tl


@jit
def rotary_kernel(
    query,  # [tokens, heads, >= 2 * half], written
    key,  # [tokens, kv_heads, >= 2 * half], written
    positions,  # int64 [tokens]
    cos_sin,  # float32 [max_positions, 2 * half]: cos, then sin
    stride_qt: tl.int64,
    stride_qh: tl.int64,
    stride_kt: tl.int64,
    stride_kh: tl.int64,
    stride_cs: tl.int64,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEADS_PAD: tl.constexpr,
    KV_PAD: tl.constexpr,
    HALF_PAD: tl.constexpr,
):
    """One token a program: its row of cos_sin is read once for all heads."""
    token = tl.program_id(0).to(tl.int64)
    dims = tl.arange(0, HALF_PAD)
    dim_valid = dims < HALF
    angles = cos_sin + tl.load(positions + token) * stride_cs + dims
    cos = tl.load(angles, mask=dim_valid, other=0.0)[None, :]
    sin = tl.load(angles + HALF, mask=dim_valid, other=0.0)[None, :]
    _rotate(query + token * stride_qt, stride_qh, dims, cos, sin, HEADS, HEADS_PAD, HALF)
    _rotate(key + token * stride_kt, stride_kh, dims, cos, sin, KV_HEADS, KV_PAD, HALF)


@jit
def _rotate(
    x, stride_head, dims, cos, sin, HEADS: tl.constexpr, PAD: tl.constexpr, HALF: tl.constexpr
):
    heads = tl.arange(0, PAD)
    mask = (heads < HEADS)[:, None] & (dims < HALF)[None, :]
    place = x + heads[:, None] * stride_head + dims[None, :]
    a = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(place + HALF, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, (a * cos - b * sin).to(x.dtype.element_ty), mask=mask)
    tl.store(place + HALF, (b * cos + a * sin).to(x.dtype.element_ty), mask=mask)


def _constants(heads: int, kv_heads: int, half: int) -> dict[str, int]:
    return {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "HALF": half,
        "HEADS_PAD": next_power_of_2(heads),
        "KV_PAD": next_power_of_2(kv_heads),
        "HALF_PAD": next_power_of_2(half),
    }


def rotary_triton(query: Tensor, key: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
    tokens, heads, _ = query.shape
    if tokens == 0:
        return
    assert query.stride(2) == key.stride(2) == cos_sin.stride(1) == 1
    rotary_kernel[(tokens,)](
        query, key, positions, cos_sin, *query.stride()[:2], *key.stride()[:2], cos_sin.stride(0),
        **_constants(heads, key.shape[1], cos_sin.shape[1] // 2),
    )  # fmt: skip


def variants() -> list[Variant]:
    strides = ("stride_qt", "stride_qh", "stride_kt", "stride_kh", "stride_cs")
    pointers = ("query", "key", "positions", "cos_sin")
    return [
        Variant(
            name=f"rotary {dtype} heads {heads}/{kv_heads} half {half}",
            kernel=rotary_kernel,
            signature={
                "query": f"*{dtype}", "key": f"*{dtype}", "positions": "*i64", "cos_sin": "*fp32",
                **dict.fromkeys(strides, "i64"),
            },
            constants=_constants(heads, kv_heads, half),
            divisible=pointers + strides,
        )
        for dtype in TRITON_NAMES.values()
        for heads, kv_heads, half in ((9, 3, 32), (64, 8, 64), (5, 1, 20))
    ]  # fmt: skip


def _rotate_in_place(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """x `[tokens, heads, >= 2 * half]`; cos, sin float32 `[tokens, 1, half]`."""
    half = cos.shape[-1]
    a, b = x[..., :half], x[..., half : 2 * half]
    wide_a, wide_b = a.float(), b.float()
    rotated_a = (wide_a * cos).addcmul_(wide_b, sin, value=-1)
    rotated_b = (wide_b * cos).addcmul_(wide_a, sin)
    a.copy_(rotated_a)
    b.copy_(rotated_b)


def _as_one(query: Tensor, key: Tensor) -> Tensor | None:
    """Query and key heads as one view where they lie side by side (a fused qkv), else None."""
    tokens, heads, size = query.shape
    if (
        query.stride() != key.stride()
        or query.untyped_storage().data_ptr() != key.untyped_storage().data_ptr()
        or query.stride(1) != size
        or key.storage_offset() != query.storage_offset() + heads * size
    ):
        return None
    return query.as_strided((tokens, heads + key.shape[1], size), query.stride())


def rotary_torch(query: Tensor, key: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
    rows = cos_sin.index_select(0, positions).unsqueeze(1)  # [tokens, 1, rotary_size]
    half = rows.shape[-1] // 2
    cos, sin = rows[..., :half], rows[..., half:]
    both = _as_one(query, key)  # halves the number of small ops, which is what this costs on CPU
    if both is not None:
        _rotate_in_place(both, cos, sin)
    else:
        _rotate_in_place(query, cos, sin)
        _rotate_in_place(key, cos, sin)
