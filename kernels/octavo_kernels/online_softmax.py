"""What both attention kernels share on the device: finding a program's sequence, and one tile of
keys.

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
def attend_tile(
    q,  # [BLOCK_M, HEAD_PAD]
    m,  # float32 [BLOCK_M]: running maximum of the scaled scores, in log2 units
    total,  # float32 [BLOCK_M]: running sum of weights
    acc,  # float32 [BLOCK_M, HEAD_PAD]
    keys,  # this kv head of block 0
    values,
    table,  # this sequence's row of block_tables
    blocks,  # AHEAD: [TILE], its entry for each key
    begin,  # first key position of the tile
    end,  # CLIPPED: nothing at or past it is read
    query_positions,  # int32 [BLOCK_M]; CAUSAL: a row sees keys up to its position
    scale_log2,  # > 0
    window,
    stride_kb: tl.int64,
    stride_ks: tl.int64,
    stride_vb: tl.int64,
    stride_vs: tl.int64,
    BLOCK_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    TILE: tl.constexpr,
    CLIPPED: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    FULL_PRECISION: tl.constexpr,
    AHEAD: tl.constexpr = False,
):
    """m, total and acc after TILE more keys.

    NOTE: a row whose first tile shows it no key needs HAS_WINDOW: elsewhere m is finite after the
    first tile.
    """
    dims = tl.arange(0, HEAD_PAD)
    positions = begin + tl.arange(0, TILE)
    inside = positions < end
    # One table entry per key: any block size works, also one that is no multiple of TILE.
    if AHEAD:
        blocks = blocks.to(tl.int64)
    elif CLIPPED:
        blocks = tl.load(table + positions // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
    else:
        blocks = tl.load(table + positions // BLOCK_SIZE).to(tl.int64)
    offsets = (positions % BLOCK_SIZE).to(tl.int64)
    k_places = keys + (blocks * stride_kb + offsets * stride_ks)[None, :] + dims[:, None]
    v_places = values + (blocks * stride_vb + offsets * stride_vs)[:, None] + dims[None, :]
    if CLIPPED or HEAD_SIZE != HEAD_PAD:
        dim_valid = dims < HEAD_SIZE
        if CLIPPED:
            k_mask = inside[None, :] & dim_valid[:, None]
            v_mask = inside[:, None] & dim_valid[None, :]
        else:
            k_mask = tl.broadcast_to(dim_valid[:, None], [HEAD_PAD, TILE])
            v_mask = tl.broadcast_to(dim_valid[None, :], [TILE, HEAD_PAD])
        k = tl.load(k_places, mask=k_mask, other=0.0)
        v = tl.load(v_places, mask=v_mask, other=0.0)
    else:
        k = tl.load(k_places)  # [HEAD_PAD, TILE]
        v = tl.load(v_places)  # [TILE, HEAD_PAD]
    if FULL_PRECISION:
        scores = tl.dot(q, k, input_precision="ieee")
    else:
        scores = tl.dot(q, k)  # [BLOCK_M, TILE] float32
    if CAUSAL:
        visible = positions[None, :] <= query_positions[:, None]
        if CLIPPED:
            visible = visible & inside[None, :]
        if HAS_WINDOW:
            visible = visible & (positions[None, :] > query_positions[:, None] - window)
        scores = tl.where(visible, scores, float("-inf"))
    elif CLIPPED:
        scores = tl.where(inside[None, :], scores, float("-inf"))
    highest = tl.maximum(m, tl.max(scores, 1) * scale_log2)
    safe = highest
    if HAS_WINDOW:
        # A row that has seen no key yet has highest = -inf, and exp2(-inf - -inf) is NaN.
        safe = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(scores * scale_log2 - safe[:, None])
    decay = tl.exp2(m - safe)
    total = total * decay + tl.sum(weights, 1)
    acc = acc * decay[:, None]
    if FULL_PRECISION:
        acc = tl.dot(weights, v, acc, input_precision="ieee")
    else:
        acc = tl.dot(weights.to(v.dtype), v, acc)
    return highest, total, acc
