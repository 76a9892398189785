"""Decode attention: one query token per sequence, bound by the bytes of its keys and values.

Split-KV ("flash-decoding", Dao et al. 2023). The grid is a bound that the host knows; how many
parts a sequence is cut into is decided on the device from the contexts of the whole batch, so that
a CUDA graph captured for the longest context is as fast at the shortest, and uneven contexts are
spread evenly. The last program of a sequence to end joins its parts: no second launch. Keys that
sequences share were read by `shared_decode`, launched in front: more parts to join.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from . import attention_plan, shared_decode
from .attention_plan import part_keys_of
from .join_parts import join_parts, parts_at_once
from .language import (
    Variant,
    gdc_launch_dependents,
    gdc_wait,
    jit,
    launch_options,
    next_power_of_2,
    tl,
)
from .online_softmax import LOG2_E, attend_tile
from .ops import AttentionBatch
from .tiles import Parts, Tiles, attention_variants, decode_tiles, seqs_pad, sizes

# Counters of a device, a quarter of a MiB: 512 sequences of 128 kv heads.
_COUNTERS = 1 << 16


@jit
def paged_decode_kernel(
    out,  # [tokens, heads, HEAD_SIZE]
    part_acc,  # float32 [slots, kv_heads, GROUP, HEAD_PAD]
    part_max,  # float32 [slots, kv_heads, GROUP], log2 units; -inf: no key seen
    part_sum,  # float32 [slots, kv_heads, GROUP]
    arrived,  # int32 [seqs, kv_heads], zero between launches
    query,  # [tokens, heads, HEAD_SIZE]
    key_cache,  # [blocks, kv_heads, BLOCK_SIZE, HEAD_SIZE]
    value_cache,
    block_tables,  # int32 [table_rows, max_blocks]
    rows,  # int32 [seqs]
    query_starts,  # int32 [seqs + 1]
    context_lens,  # int32 [seqs]
    plan,  # int32 [slots, 8]; PLANNED
    first_partial,  # where partials of shared keys begin, in slots; SHARED
    seqs,
    wanted,  # slots that a batch without short sequences is cut into
    min_keys,  # a part is at least so long
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
    SEQS_PAD: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    JOIN: tl.constexpr,
    PLAIN: tl.constexpr,
    AHEAD: tl.constexpr,
    STAGES: tl.constexpr,
    PLANNED: tl.constexpr,
    SHARED: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    """A slot is one part of one sequence; slots are numbered along the sequences.

    EARLY: the tables are read before the wait. They were written long before; what counts is that
    the kernel right in front lets this one start only after its own wait, as `rotary_cache` and
    `cache_write` do. (`shared_decode` does not, but it starts behind one of these itself.)
    """
    kv_head = tl.program_id(0)  # fastest: the heads of a page lie side by side
    slot = tl.program_id(1)
    if PDL and not EARLY:
        gdc_wait()
        gdc_launch_dependents()

    if PLANNED:
        record = plan + slot * 8
        seq = tl.load(record)
        token = tl.load(record + 1).to(tl.int64)
        row = tl.load(record + 2).to(tl.int64)
        begin = tl.load(record + 3)
        end = tl.load(record + 4)
        parts = tl.load(record + 5)
        first_slot = tl.load(record + 6)
        joined = 0
        if SHARED:
            joined = tl.load(record + 7)
        if PDL and EARLY:
            gdc_wait()
            gdc_launch_dependents()
        if seq < 0:
            return
    else:
        joined = 0
        ids = tl.arange(0, SEQS_PAD)
        here = ids < seqs
        query_lens = tl.load(query_starts + ids + 1, mask=here, other=0)
        query_lens -= tl.load(query_starts + ids, mask=here, other=0)
        spans = tl.load(context_lens + ids, mask=here, other=0)  # keys that a query sees
        if HAS_WINDOW:
            spans = tl.minimum(spans, window)
        spans = tl.where(query_lens == 1, spans, 0)
        part_keys = part_keys_of(spans, wanted, min_keys, SEARCH=False)
        slot_ends = tl.cumsum(tl.cdiv(spans, part_keys), 0)
        before = slot_ends <= slot
        seq = tl.sum(before.to(tl.int32), 0)
        first_slot = tl.max(tl.where(before, slot_ends, 0), 0)
        if PDL and EARLY:
            gdc_wait()
            gdc_launch_dependents()
        if seq >= seqs:
            return
        token = tl.load(query_starts + seq).to(tl.int64)
        row = tl.load(rows + seq).to(tl.int64)
        context_len = tl.load(context_lens + seq)
        span = context_len
        if HAS_WINDOW:
            span = tl.minimum(context_len, window)
        parts = tl.cdiv(span, part_keys)
        # Equal parts of whole tiles; where tiles are coarse the last ones may be empty.
        length = tl.cdiv(tl.cdiv(span, parts), TILE) * TILE
        begin = context_len - span + (slot - first_slot) * length
        end = tl.minimum(begin + length, context_len)
    table = block_tables + row * stride_bt

    group = tl.arange(0, BLOCK_M)
    heads = kv_head * GROUP + group
    group_valid = group < GROUP
    dims = tl.arange(0, HEAD_PAD)
    q = tl.load(
        query + (token * stride_qt + heads * stride_qh)[:, None] + dims[None, :],
        mask=group_valid[:, None] & (dims < HEAD_SIZE)[None, :],
        other=0.0,
    )
    keys = key_cache + kv_head * stride_kh
    values = value_cache + kv_head * stride_vh
    if PLAIN:
        m, total, acc = _attend_plain(
            query + token * stride_qt + kv_head * stride_qh, keys, values, table, begin, end,
            scale_log2, stride_kb, stride_ks, stride_vb, stride_vs,
            BLOCK_SIZE, HEAD_SIZE, HEAD_PAD, TILE, STAGES,
        )  # fmt: skip
    else:
        m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, HEAD_PAD], tl.float32)
        ahead = begin + tl.arange(0, TILE)
        blocks = tl.load(table + ahead // BLOCK_SIZE, mask=(ahead < end) & AHEAD, other=0)
        for tile_begin in range(begin, end, TILE):
            if AHEAD:
                ahead = tile_begin + TILE + tl.arange(0, TILE)
                following = tl.load(table + ahead // BLOCK_SIZE, mask=ahead < end, other=0)
            m, total, acc = attend_tile(
                q, m, total, acc, keys, values, table, blocks, tile_begin, end, heads, scale_log2,
                window, stride_kb, stride_ks, stride_vb, stride_vs, BLOCK_SIZE, HEAD_SIZE, HEAD_PAD,
                TILE, CLIPPED=True, CAUSAL=False, HAS_WINDOW=False, FULL_PRECISION=FULL_PRECISION,
                AHEAD=AHEAD,
            )  # fmt: skip
            if AHEAD:
                blocks = following

    place = out + token * stride_ot
    if (parts == 1) & (joined == 0):
        tl.store(
            place + (heads * stride_oh)[:, None] + dims[None, :],
            (acc / total[:, None]).to(out.dtype.element_ty),
            mask=group_valid[:, None] & (dims < HEAD_SIZE)[None, :],
        )
    else:
        kv_heads = tl.num_programs(0)
        part_rows = (slot * kv_heads + kv_head) * GROUP + group
        tl.store(part_max + part_rows, m, mask=group_valid)
        tl.store(part_sum + part_rows, total, mask=group_valid)
        tl.store(
            part_acc + part_rows[:, None] * HEAD_PAD + dims[None, :],
            acc,
            mask=group_valid[:, None],
        )
        tl.debug_barrier()  # every thread's part is written before one of them counts it
        counter = arrived + seq * kv_heads + kv_head
        if tl.atomic_add(counter, 1, sem="acq_rel") == parts - 1:
            tl.store(counter, 0)
            join_parts(
                place + kv_head * GROUP * stride_oh, stride_oh, part_acc, part_max, part_sum,
                (first_slot * kv_heads + kv_head) * GROUP, parts,
                ((first_partial + joined // 1024) * kv_heads + kv_head) * GROUP, joined % 1024,
                kv_heads * GROUP, HEAD_SIZE, HEAD_PAD, GROUP, GROUP_PAD, JOIN, SHARED,
            )  # fmt: skip


@jit
def _attend_plain(
    query,  # this head
    keys,
    values,
    table,
    begin,
    end,
    scale_log2,
    stride_kb: tl.int64,
    stride_ks: tl.int64,
    stride_vb: tl.int64,
    stride_vs: tl.int64,
    BLOCK_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One query head without tensor cores: m [1], total [1], acc [1, HEAD_PAD].

    Each of TILE lanes has a softmax of its own over every TILE-th key; they are joined at the end.
    """
    dims = tl.arange(0, HEAD_PAD)
    lanes = tl.arange(0, TILE)
    q = tl.load(query + dims, mask=dims < HEAD_SIZE, other=0.0).to(tl.float32) * scale_log2
    m = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    acc = tl.zeros([TILE, HEAD_PAD], tl.float32)
    for tile_begin in tl.range(begin, end, TILE, num_stages=STAGES):
        positions = tile_begin + lanes
        inside = positions < end
        blocks = tl.load(table + positions // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
        offsets = (positions % BLOCK_SIZE).to(tl.int64)
        mask = inside[:, None] & (dims < HEAD_SIZE)[None, :]
        k_places = keys + (blocks * stride_kb + offsets * stride_ks)[:, None] + dims[None, :]
        v_places = values + (blocks * stride_vb + offsets * stride_vs)[:, None] + dims[None, :]
        k = tl.load(k_places, mask=mask, other=0.0)
        v = tl.load(v_places, mask=mask, other=0.0)
        scores = tl.sum(k.to(tl.float32) * q[None, :], 1)
        scores = tl.where(inside, scores, float("-inf"))
        highest = tl.maximum(m, scores)
        safe = tl.where(highest == float("-inf"), 0.0, highest)
        weights = tl.exp2(scores - safe)
        decay = tl.exp2(m - safe)
        total = total * decay + weights
        acc = acc * decay[:, None] + weights[:, None] * v.to(tl.float32)
        m = highest
    top = tl.max(m, 0)
    share = tl.exp2(m - tl.where(top == float("-inf"), 0.0, top))
    one = tl.arange(0, 1)
    return (
        tl.where(one == 0, top, 0.0),
        tl.where(one == 0, tl.sum(total * share, 0), 0.0),
        tl.sum(acc * share[:, None], 0)[None, :],
    )


_counters: dict[torch.device, list[Tensor]] = {}


def counters(device: torch.device, count: int) -> Tensor:
    """At least `count` zeros, int32, which launches on one stream share: each leaves zeros behind.

    Kept for good, because graphs hold their address. A capture that comes before any eager launch
    gets its own, zeroed in the graph.
    """
    kept = _counters.setdefault(device, [])
    if not kept or len(kept[-1]) < count:
        size = max(_COUNTERS, next_power_of_2(count))
        zeros = torch.zeros(size, dtype=torch.int32, device=device)
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return zeros
        kept.append(zeros)
    return kept[-1]


def _own_sizes(seqs: int, group: int, head_pad: int, shared: bool) -> dict[str, int]:
    group_pad = next_power_of_2(group)
    return {
        "SEQS_PAD": seqs_pad(seqs),
        "GROUP_PAD": group_pad,
        "JOIN": parts_at_once(group_pad, head_pad, shared),
    }


def launch(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    batch: AttentionBatch,
    out: Tensor,
    scale: float,
    sliding_window: int,
    tiles: Tiles | None = None,
    cut: Parts | None = None,
    early: bool = True,
) -> None:
    """Attention of the first `num_decodes` sequences, where they have one query token."""
    _, heads, head_size = query.shape
    _, kv_heads, block_size, _ = key_cache.shape
    seqs, group = batch.num_decodes, heads // kv_heads
    width = query.element_size()
    tiles = tiles or decode_tiles(group, head_size, width, batch.num_decodes, batch.max_context_len)
    cut = cut or attention_plan.PARTS
    constants = sizes(tiles, group, head_size, block_size, width, sliding_window)
    if tiles.plain:
        assert group == 1
        constants["BLOCK_M"] = 1
    pad = constants["HEAD_PAD"]
    wanted, slots = attention_plan.bounds(batch, kv_heads, cut, sliding_window)
    plan = None if sliding_window else batch.plan
    shared = None if plan is None else batch.shared
    if plan is not None:
        slots = plan.shape[0]
    partials = slots if slots > seqs or shared is not None else 0
    if shared is not None:
        partials += shared.partials
    # A multiple of 4: else the sums behind the maxima are not aligned, and that is compiled again.
    scratch_rows = -(-partials // 4) * 4 * kv_heads * group
    part_acc = torch.empty(scratch_rows, pad, dtype=torch.float32, device=query.device)
    stats = torch.empty(2, scratch_rows, dtype=torch.float32, device=query.device)
    if shared is not None:
        shared_decode.launch(query, key_cache, value_cache, batch, part_acc, stats, slots, scale)
    paged_decode_kernel[(kv_heads, slots)](
        out, part_acc, stats[0], stats[1], counters(query.device, seqs * kv_heads),
        query, key_cache, value_cache, batch.block_tables, batch.rows, batch.query_starts,
        batch.context_lens, batch.context_lens if plan is None else plan, slots, seqs,
        wanted, cut.min_keys, scale * LOG2_E, sliding_window,
        *out.stride()[:2], *query.stride()[:2], *key_cache.stride()[:3], *value_cache.stride()[:3],
        batch.block_tables.stride(0), **constants,
        **_own_sizes(seqs if plan is None else 16, group, pad, shared is not None),
        PLAIN=tiles.plain, AHEAD=tiles.ahead, STAGES=tiles.stages, PLANNED=plan is not None,
        SHARED=shared is not None, EARLY=early,
        num_warps=tiles.warps, num_stages=tiles.stages, **launch_options(query.device.index),
    )  # fmt: skip


def variants() -> list[Variant]:
    scratch = dict.fromkeys(("part_acc", "part_max", "part_sum"), "*fp32") | {
        "arrived": "*i32",
        "plan": "*i32",
    }
    found = []
    for seqs, planned in ((16, True), (16, False), (512, False)):
        own = {
            "SEQS_PAD": seqs, "EARLY": False, "PDL": False, "GROUP_PAD": 8, "JOIN": 2,
            "PLAIN": False, "AHEAD": False, "STAGES": 2, "PLANNED": planned,
            "SHARED": False,
        }  # fmt: skip
        found += attention_variants(
            f"paged_decode seqs {seqs}" + " planned" * planned,
            paged_decode_kernel,
            decode_tiles,
            scratch,
            own,
        )
    for variant in found:
        constants = variant.constants
        own = _own_sizes(1, constants["GROUP"], constants["HEAD_PAD"], False)
        constants |= {key: own[key] for key in ("GROUP_PAD", "JOIN")}
    other = []
    for variant in found:
        if variant.name.startswith("paged_decode seqs 16 planned bf16"):
            changed = (
                {"PLAIN": True, "BLOCK_M": 1}
                if variant.constants["GROUP"] == 1
                else {"AHEAD": True}
            )
            name = f"{variant.name} {next(iter(changed)).lower()}"
            other.append(replace(variant, name=name, constants=variant.constants | changed))
            for plain in (variant, other[-1]):
                constants = plain.constants | {"SHARED": True}
                own = _own_sizes(1, constants["GROUP"], constants["HEAD_PAD"], True)
                constants["JOIN"] = own["JOIN"]
                other.append(replace(plain, name=f"{plain.name} shared", constants=constants))
    return found + other
