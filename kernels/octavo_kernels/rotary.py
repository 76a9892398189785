"""Rotary position embedding, halves style (NeoX), in place.

With c, s = cos and sin of position * inverse_frequency: (a, b) -> (a c - b s, b c + a s), where a and
b are the two halves of the first rotary_size dimensions of a head (Su et al. 2021).
"""

from __future__ import annotations

from torch import Tensor


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
