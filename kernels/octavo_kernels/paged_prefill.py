"""Prefill attention: sequences with several query tokens, on tensor cores.

All query heads of a kv head share a program ("GQA packing", as in vLLM's unified kernel, arXiv
2511.11581): it covers BLOCK_M // GROUP query tokens of one sequence. Tiles of keys that every one
of its rows sees are not masked. The grid is a bound made of numbers the host knows; programs
without work leave at once.
"""

from __future__ import annotations

from torch import Tensor

from .language import Variant, gdc_launch_dependents, gdc_wait, jit, launch_options, tl
from .online_softmax import LOG2_E, attend_tile, find_sequence
from .ops import AttentionBatch
from .tiles import Tiles, attention_variants, prefill_tiles, sizes


@jit
def paged_prefill_kernel(
    out,  # [tokens, heads, HEAD_SIZE]
    query,  # [tokens, heads, HEAD_SIZE]
    key_cache,  # [blocks, kv_heads, BLOCK_SIZE, HEAD_SIZE]
    value_cache,
    block_tables,  # int32 [table_rows, max_blocks]
    rows,  # int32 [seqs]
    query_starts,  # int32 [seqs + 1]
    context_lens,  # int32 [seqs]
    seqs,
    scale_log2,
    window,
    stride_ot: tl.int64,
    stride_oh: tl.int64,
    stride_qt: tl.int64,
    stride_qh: tl.int64,
    stride_kb: tl.int64,
    stride_kh: tl.int64,
    stride_ks: tl.int64,
    stride_vb: tl.int64,
    stride_vh: tl.int64,
    stride_vs: tl.int64,
    stride_bt: tl.int64,
    BLOCK_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    FULL_PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP  # query tokens of a program
    kv_head = tl.program_id(0)
    # A sequence's last tokens see the most keys: they start first.
    index = tl.num_programs(1) - 1 - tl.program_id(1)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    seq = find_sequence(query_starts, index, seqs, BLOCK_Q)
    query_begin = tl.load(query_starts + seq)
    query_len = tl.load(query_starts + seq + 1) - query_begin
    first = (index - (query_begin // BLOCK_Q + seq)) * BLOCK_Q  # of this program, in the sequence
    if (first >= query_len) | (query_len == 1):
        return
    context_len = tl.load(context_lens + seq)
    table = block_tables + tl.load(rows + seq).to(tl.int64) * stride_bt
    first_position = context_len - query_len + first

    # Row i of the tile: query token first + i // GROUP, query head kv_head * GROUP + i % GROUP.
    row_ids = tl.arange(0, BLOCK_M)
    tokens = first + row_ids // GROUP
    heads = kv_head * GROUP + row_ids % GROUP
    row_valid = (tokens < query_len) & (row_ids < BLOCK_Q * GROUP)
    query_positions = first_position + row_ids // GROUP
    dims = tl.arange(0, HEAD_PAD)
    mask = row_valid[:, None] & (dims < HEAD_SIZE)[None, :]
    token_rows = (query_begin + tokens).to(tl.int64)
    q = tl.load(
        query + (token_rows * stride_qt + heads * stride_qh)[:, None] + dims[None, :],
        mask=mask,
        other=0.0,
    )

    keys = key_cache + kv_head * stride_kh
    values = value_cache + kv_head * stride_vh
    key_end = tl.minimum(first_position + BLOCK_Q, context_len)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, HEAD_PAD], tl.float32)
    if HAS_WINDOW:
        edge = tl.maximum(first_position - window + 1, 0)
    else:
        edge = (first_position + 1) // TILE * TILE  # every row sees all keys before it
        for tile_begin in range(0, edge, TILE):
            m, total, acc = attend_tile(
                q, m, total, acc, keys, values, table, None, tile_begin, key_end, query_positions,
                scale_log2, window, stride_kb, stride_ks, stride_vb, stride_vs,
                BLOCK_SIZE, HEAD_SIZE, HEAD_PAD, TILE,
                CLIPPED=False, CAUSAL=False, HAS_WINDOW=False, FULL_PRECISION=FULL_PRECISION,
            )  # fmt: skip
    for tile_begin in range(edge, key_end, TILE):
        m, total, acc = attend_tile(
            q, m, total, acc, keys, values, table, None, tile_begin, key_end, query_positions,
            scale_log2, window, stride_kb, stride_ks, stride_vb, stride_vs,
            BLOCK_SIZE, HEAD_SIZE, HEAD_PAD, TILE,
            CLIPPED=True, CAUSAL=True, HAS_WINDOW=HAS_WINDOW, FULL_PRECISION=FULL_PRECISION,
        )  # fmt: skip
    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(
        out + (token_rows * stride_ot + heads * stride_oh)[:, None] + dims[None, :],
        result.to(out.dtype.element_ty),
        mask=mask,
    )


def launch(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    batch: AttentionBatch,
    out: Tensor,
    scale: float,
    sliding_window: int,
    tiles: Tiles | None = None,
) -> None:
    """Attention of every sequence of two query tokens or more."""
    tokens, heads, head_size = query.shape
    _, kv_heads, block_size, _ = key_cache.shape
    seqs, group = batch.context_lens.shape[0], heads // kv_heads
    width = query.element_size()
    tiles = tiles or prefill_tiles(group, head_size, width, batch.max_query_len)
    programs = tokens // (tiles.block_m // group) + seqs
    paged_prefill_kernel[(kv_heads, programs)](
        out, query, key_cache, value_cache, batch.block_tables, batch.rows, batch.query_starts,
        batch.context_lens, seqs, scale * LOG2_E, sliding_window, *out.stride()[:2],
        *query.stride()[:2], *key_cache.stride()[:3], *value_cache.stride()[:3],
        batch.block_tables.stride(0),
        **sizes(tiles, group, head_size, block_size, width, sliding_window),
        num_warps=tiles.warps, num_stages=tiles.stages, **launch_options(query.device.index),
    )  # fmt: skip


def variants() -> list[Variant]:
    return attention_variants(
        "paged_prefill", paged_prefill_kernel, prefill_tiles, {}, {"PDL": False}
    )
