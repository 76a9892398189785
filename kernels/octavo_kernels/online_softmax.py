"""What both attention kernels share on the device: finding a program's sequence, and the key loop.

Softmax is online (Milakov & Gimelshein 2018; Dao 2022): a running maximum and sum per query row.
"""

from __future__ import annotations

from .language import jit, tl

# exp2 is one instruction; exp is that and a multiply. Folded into the scale of the scores.
LOG2_E = 1.4426950408889634


@jit
def find_sequence(query_starts, index, seqs, BLOCK_Q: tl.constexpr):
    """Sequence whose programs include `index`, where sequence s owns the
    `query_len // BLOCK_Q + 1` programs from `query_starts[s] // BLOCK_Q + s` on."""
    left = 0
    right = seqs
    while left < right:
        middle = (left + right) // 2
        if tl.load(query_starts + middle) // BLOCK_Q + middle <= index:
            left = middle + 1
        else:
            right = middle
    return left - 1


@jit
def attend(
    q,  # [BLOCK_M, HEAD_PAD]
    m,  # float32 [BLOCK_M]: running maximum of the scores, in log2 units
    total,  # float32 [BLOCK_M]: running sum of weights
    acc,  # float32 [BLOCK_M, HEAD_PAD]
    key_cache,
    value_cache,
    table,  # this sequence's row of block_tables
    kv_head,
    key_begin,  # first key position of this loop
    key_end,  # end of keys (exclusive): nothing at or past it is read
    query_positions,  # int32 [BLOCK_M]
    row_valid,  # bool [BLOCK_M]
    scale_log2,
    window,
    stride_kb: tl.int64,
    stride_kh: tl.int64,
    stride_ks: tl.int64,
    stride_vb: tl.int64,
    stride_vh: tl.int64,
    stride_vs: tl.int64,
    BLOCK_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    FULL_PRECISION: tl.constexpr,
):
    """Online softmax over key positions [key_begin, key_end)."""
    dims = tl.arange(0, HEAD_PAD)
    dim_valid = dims < HEAD_SIZE
    for tile_begin in range(key_begin, key_end, TILE):
        positions = tile_begin + tl.arange(0, TILE)
        inside = positions < key_end
        # One table entry per element: any block size works, also one that is no multiple of TILE.
        blocks = tl.load(table + positions // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
        offsets = (positions % BLOCK_SIZE).to(tl.int64)
        k_rows = blocks * stride_kb + kv_head * stride_kh + offsets * stride_ks
        v_rows = blocks * stride_vb + kv_head * stride_vh + offsets * stride_vs
        k = tl.load(
            key_cache + k_rows[None, :] + dims[:, None],
            mask=inside[None, :] & dim_valid[:, None],
            other=0.0,
        )  # [HEAD_PAD, TILE]
        v = tl.load(
            value_cache + v_rows[:, None] + dims[None, :],
            mask=inside[:, None] & dim_valid[None, :],
            other=0.0,
        )  # [TILE, HEAD_PAD]
        if FULL_PRECISION:
            scores = tl.dot(q, k, input_precision="ieee") * scale_log2
        else:
            scores = tl.dot(q, k) * scale_log2  # [BLOCK_M, TILE] float32
        visible = (positions[None, :] <= query_positions[:, None]) & row_valid[:, None]
        visible = visible & inside[None, :]
        if HAS_WINDOW:
            visible = visible & (positions[None, :] > query_positions[:, None] - window)
        scores = tl.where(visible, scores, float("-inf"))
        highest = tl.maximum(m, tl.max(scores, 1))
        # A row that has seen no key yet has highest = -inf, and exp2(-inf - -inf) is NaN.
        safe = tl.where(highest == float("-inf"), 0.0, highest)
        weights = tl.exp2(scores - safe[:, None])
        decay = tl.exp2(m - safe)
        total = total * decay + tl.sum(weights, 1)
        acc = acc * decay[:, None]
        if FULL_PRECISION:
            acc = tl.dot(weights, v, acc, input_precision="ieee")
        else:
            acc = tl.dot(weights.to(v.dtype), v, acc)
        m = highest
    return m, total, acc
