"""Decode attention over keys that many sequences share: read once for all of them.

The query heads of up to BLOCK_M / GROUP sequences are the rows of one tensor-core tile, which goes
over a part of the shared keys; what comes out, (maximum, sum, accumulator) of each row, are parts
like those of `paged_decode`, whose last program of a sequence joins them with its own (as in
Hydragen, Juravsky et al. 2024).

A kernel of its own in front of `paged_decode`: its tile wants eight warps where reading one
sequence's bytes goes fastest with two, and a kernel has one number. The price is a launch that
finds nothing to do in steps where nothing is shared, so steps of few sequences leave it out
(`tiles.Sharing`). The grid is one wave, whatever the work: programs take items in turn.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from .attention_plan import shared_bound
from .language import Variant, gdc_launch_dependents, gdc_wait, jit, launch_options, tl
from .online_softmax import LOG2_E, attend_tile
from .ops import AttentionBatch
from .tiles import Tiles, attention_variants, shared_tiles, sizes


@jit
def shared_decode_kernel(
    part_acc,  # float32 [partials, kv_heads, GROUP, HEAD_PAD]
    part_max,  # float32 [partials, kv_heads, GROUP], log2 units
    part_sum,  # float32 [partials, kv_heads, GROUP]
    query,  # [tokens, heads, HEAD_SIZE]
    key_cache,  # [blocks, kv_heads, BLOCK_SIZE, HEAD_SIZE]
    value_cache,
    block_tables,  # int32 [table_rows, max_blocks]
    items,  # int32 [1 + most items, 8]: how many; then each one's first member, members, part,
    # first key, end, row of block_tables
    members,  # int32 [seqs, 2]: token, partial of the first part
    first_partial,
    scale_log2,
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
    FULL_PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Items are read before the wait, as `paged_decode` reads its plan."""
    kv_head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    count = tl.load(items)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    ids = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, HEAD_PAD)
    heads = kv_head * GROUP + ids % GROUP
    keys = key_cache + kv_head * stride_kh
    values = value_cache + kv_head * stride_vh
    for index in range(tl.program_id(1), count, tl.num_programs(1)):
        item = items + (1 + index) * 8
        member = tl.load(item) + ids // GROUP
        valid = ids // GROUP < tl.load(item + 1)
        part = tl.load(item + 2)
        begin = tl.load(item + 3)
        end = tl.load(item + 4)
        table = block_tables + tl.load(item + 5).to(tl.int64) * stride_bt
        token = tl.load(members + member * 2, mask=valid, other=0).to(tl.int64)
        partial = tl.load(members + member * 2 + 1, mask=valid, other=0) + part
        q = tl.load(
            query + (token * stride_qt + heads * stride_qh)[:, None] + dims[None, :],
            mask=valid[:, None] & (dims < HEAD_SIZE)[None, :],
            other=0.0,
        )
        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, HEAD_PAD], tl.float32)
        for tile_begin in range(begin, end, TILE):
            m, total, acc = attend_tile(
                q, m, total, acc, keys, values, table, None, tile_begin, end, heads, scale_log2, 0,
                stride_kb, stride_ks, stride_vb, stride_vs, BLOCK_SIZE, HEAD_SIZE, HEAD_PAD, TILE,
                CLIPPED=True, CAUSAL=False, HAS_WINDOW=False, FULL_PRECISION=FULL_PRECISION,
            )  # fmt: skip
        place = ((first_partial + partial) * kv_heads + kv_head) * GROUP + ids % GROUP
        tl.store(part_max + place, m, mask=valid)
        tl.store(part_sum + place, total, mask=valid)
        tl.store(part_acc + place[:, None] * HEAD_PAD + dims[None, :], acc, mask=valid[:, None])


def launch(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    batch: AttentionBatch,
    part_acc: Tensor,
    stats: Tensor,
    first_partial: int,
    scale: float,
    tiles: Tiles | None = None,
) -> None:
    """Fill the partials of shared keys, which begin at `first_partial`; in front of paged_decode's
    launch. part_acc and stats (maxima, then sums) as its kernel has them."""
    _, heads, head_size = query.shape
    _, kv_heads, block_size, _ = key_cache.shape
    group, width, shared = heads // kv_heads, query.element_size(), batch.shared
    assert shared is not None
    # As the plan chose them: an item is as many sequences as a tile has room for.
    tiles = tiles or shared_tiles(group, head_size, width, batch.num_decodes)
    constants = sizes(tiles, group, head_size, block_size, width, 0)
    del constants["HAS_WINDOW"]
    programs = shared_bound(tiles, kv_heads, query.device)
    shared_decode_kernel[(kv_heads, programs)](
        part_acc, stats[0], stats[1], query, key_cache, value_cache, batch.block_tables,
        shared.items, shared.members, first_partial, scale * LOG2_E,
        *query.stride()[:2], *key_cache.stride()[:3], *value_cache.stride()[:3],
        batch.block_tables.stride(0), **constants,
        num_warps=tiles.warps, num_stages=tiles.stages, **launch_options(query.device.index),
    )  # fmt: skip


def variants() -> list[Variant]:
    tensors = dict.fromkeys(("part_acc", "part_max", "part_sum"), "*fp32")
    tensors |= dict.fromkeys(("items", "members"), "*i32")

    found: dict[str, Variant] = {}
    for num_decodes in (1, 512):

        def choose(group: int, head_size: int, width: int, most: int = num_decodes) -> Tiles:
            return shared_tiles(group, head_size, width, most)

        for variant in attention_variants(
            "shared_decode", shared_decode_kernel, choose, tensors, {"PDL": False}
        ):
            name = f"{variant.name} rows {variant.constants['BLOCK_M']}"
            found[name] = replace(variant, name=name)  # in float32 the two are one
    return list(found.values())
