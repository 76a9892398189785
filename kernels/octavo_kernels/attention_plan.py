"""Which part of which sequence each slot of a decode attention launch has: made once a step.

Every layer cuts the same contexts, so one small kernel behind `step_inputs` cuts them for all; a
decode program then reads one record instead of every sequence's context. Layers with a sliding
window cut their spans themselves.

Where sequences share leading keys (`shared_prefix`), the same kernel cuts those into items for
`shared_decode`, and the slots get what is each sequence's own.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .language import Variant, cdiv, gdc_wait, jit, launch_options, tl
from .ops import AttentionBatch, SharedKeys
from .shared_prefix import find_shared_triton
from .tiles import SEQ_CLASSES, Parts, Sharing, Tiles, seqs_pad, shared_tiles

PARTS = Parts()
SHARING = Sharing()
RECORD = 8
"""int32s of a record: sequence (-1: no work), first token, row, first key, end, parts, the first
part's slot, shared parts + 1024 x the first one's partial (0: none). 32 bytes: one sector."""

# More parts of shared keys do not fit a record; a grid of so many would be several waves anyway.
_MOST_SHARED_PARTS = 1000
# Records that a program of the plan writes at a time: one warp.
_CHUNK = 32


@jit
def part_keys_of(spans, wanted, min_keys, SEARCH: tl.constexpr):
    """Keys of a part. SEARCH: more of them until the parts fit `wanted` slots, as a few parts past
    one wave of programs cost a second one; at most 2.5 times as many."""
    part_keys = tl.maximum(tl.cdiv(tl.sum(spans, 0), wanted), min_keys)
    if SEARCH:
        for _ in range(8):
            parts = tl.cdiv(spans, part_keys)
            # A sequence that is not cut fills its share of a slot; the parts of one that is, whole.
            filled = tl.sum(tl.where(parts > 1, parts * part_keys, spans), 0)
            part_keys = tl.where(filled > wanted * part_keys, part_keys * 9 // 8 + 1, part_keys)
    return part_keys


@jit
def _cut(spans, part_keys, ROUND: tl.constexpr):
    """Equal parts of whole tiles for each sequence: their length, and how many."""
    lengths = tl.cdiv(spans, tl.maximum(tl.cdiv(spans, part_keys), 1))
    lengths = tl.maximum(tl.cdiv(lengths, ROUND) * ROUND, ROUND)
    return lengths, tl.cdiv(spans, lengths)


@jit
def _plan_shared(
    items,
    members,
    groups,
    seq,
    seqs,
    token,
    row,
    shared_wanted,
    min_shared,
    min_saved,
    tile_seqs,
    SEQS_PAD: tl.constexpr,
    ROUND: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Keys that each sequence shares, and the last field of this one's records."""
    ids = tl.arange(0, SEQS_PAD)
    here = ids < seqs
    shared = tl.load(groups + ids * 4, mask=here, other=0)
    ranks = tl.load(groups + ids * 4 + 2, mask=here, other=0)
    counts = tl.load(groups + ids * 4 + 3, mask=here, other=0)
    counts = tl.where((shared > 0) & (ranks == 0), counts, 0)  # at each group's first sequence
    chunks = tl.cdiv(counts, tile_seqs)
    # Whole thousands of keys and of sequences: 2^31 are far.
    saved = tl.sum((counts - chunks) * shared, 0)
    shared = tl.where(saved >= min_saved, shared, 0)
    chunks = tl.where(shared > 0, chunks, 0)
    part_keys = tl.maximum(tl.cdiv(tl.sum(chunks * shared, 0), shared_wanted), min_shared)
    for _ in range(8):  # as part_keys_of: rather longer parts than a few past one wave
        total = tl.sum(chunks * tl.cdiv(shared, part_keys), 0)
        part_keys = tl.where(total > shared_wanted, part_keys * 9 // 8 + 1, part_keys)
    lengths = tl.cdiv(shared, tl.maximum(tl.cdiv(shared, part_keys), 1))
    lengths = tl.maximum(tl.cdiv(lengths, ROUND) * ROUND, ROUND)
    parts = tl.cdiv(shared, lengths)

    mine = ids == seq
    my_shared = tl.sum(tl.where(mine, shared, 0), 0)
    my_parts = tl.sum(tl.where(mine, parts, 0), 0)
    my_length = tl.sum(tl.where(mine, lengths, 0), 0)
    partial = tl.sum(tl.where(ids < seq, parts, 0), 0)
    if seq == 0:
        tl.store(items, tl.sum(chunks * parts, 0))
    if my_parts > 0:
        leader = tl.load(groups + seq * 4 + 1)
        rank = tl.load(groups + seq * 4 + 2)
        first_member = tl.sum(tl.where((ids < leader) & (shared > 0), counts, 0), 0)
        member = members + (first_member + rank) * 2
        tl.store(member, token)
        tl.store(member + 1, partial)
        if rank == 0:
            count = tl.load(groups + seq * 4 + 3)
            first_item = tl.sum(tl.where(ids < seq, chunks * parts, 0), 0)
            for start in range(0, tl.cdiv(count, tile_seqs) * my_parts, CHUNK):
                item = start + tl.arange(0, CHUNK)
                valid = item < tl.cdiv(count, tile_seqs) * my_parts
                before = item // my_parts * tile_seqs
                part = item % my_parts
                record = items + (1 + first_item + item) * 8
                tl.store(record, first_member + before, mask=valid)
                tl.store(record + 1, tl.minimum(count - before, tile_seqs), mask=valid)
                tl.store(record + 2, part, mask=valid)
                tl.store(record + 3, part * my_length, mask=valid)
                tl.store(record + 4, tl.minimum((part + 1) * my_length, my_shared), mask=valid)
                tl.store(record + 5, tl.zeros([CHUNK], tl.int32) + row, mask=valid)
    return shared, tl.where(my_parts > 0, partial * 1024 + my_parts, 0)


@jit
def attention_plan_kernel(
    plan,  # int32 [slots, 8]
    rows,  # int32 [seqs]
    query_starts,  # int32 [seqs + 1]
    context_lens,  # int32 [seqs]
    groups,  # int32 [seqs, 4], see shared_prefix.Group; SHARED
    items,  # int32 [1 + most items, 8], see shared_decode; SHARED
    members,  # int32 [seqs, 2], likewise; SHARED
    seqs,
    wanted,
    min_keys,
    seq_cap,  # slots
    shared_wanted,  # items of shared keys that make one wave
    min_shared,  # a part of shared keys is at least so long
    min_saved,  # keys that must not be read again, or nothing is shared
    tile_seqs,  # sequences of an item
    SEQS_PAD: tl.constexpr,
    ROUND: tl.constexpr,
    CHUNK: tl.constexpr,
    SHARED: tl.constexpr,
    SHARED_ROUND: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program i writes the records of sequence i, and a share of those without work.

    NOTE: it does not let the next kernel start early: attention reads the plan before its wait.
    """
    if PDL:
        gdc_wait()
    seq = tl.program_id(0)
    ids = tl.arange(0, SEQS_PAD)
    here = ids < seqs
    query_lens = tl.load(query_starts + ids + 1, mask=here, other=0)
    query_lens -= tl.load(query_starts + ids, mask=here, other=0)
    spans = tl.load(context_lens + ids, mask=here, other=0)
    spans = tl.where(query_lens == 1, spans, 0)
    token = tl.load(query_starts + seq)
    row = tl.load(rows + seq)
    begin = 0
    if SHARED:
        shared, joined = _plan_shared(
            items, members, groups, seq, seqs, token, row, shared_wanted, min_shared, min_saved,
            tile_seqs, SEQS_PAD, SHARED_ROUND, CHUNK,
        )  # fmt: skip
        begin = tl.sum(tl.where(ids == seq, shared, 0), 0)
        spans -= shared
    part_keys = part_keys_of(spans, wanted, min_keys, SEARCH=True)
    lengths, counts = _cut(spans, part_keys, ROUND)
    used = tl.sum(counts, 0)
    # One wave ends with its longest part: where they are uneven, finer ones fill what others leave.
    longest = tl.max(tl.minimum(lengths, spans), 0)
    finer, more = _cut(spans, tl.maximum(part_keys * 2 // 3, min_keys), ROUND)
    uneven = (used <= wanted) & (longest * used > tl.sum(spans, 0) * 5 // 4)
    if uneven & (tl.sum(more, 0) <= seq_cap):
        lengths = finer
        counts = more
        used = tl.sum(counts, 0)
    # The longest first, so that the last ones to run are short.
    mine = ids == seq
    sizes = tl.minimum(lengths, spans)
    own = tl.sum(tl.where(mine, sizes, 0), 0)
    ahead = (sizes > own) | ((sizes == own) & (ids < seq))
    first_slot = tl.sum(tl.where(ahead, counts, 0), 0)
    parts = tl.sum(tl.where(mine, counts, 0), 0)
    length = tl.sum(tl.where(mine, lengths, 0), 0)
    end = begin + tl.sum(tl.where(mine, spans, 0), 0)

    chunk = tl.arange(0, CHUNK)
    zeros = tl.zeros([CHUNK], tl.int32)
    for start in range(0, parts, CHUNK):
        part = start + chunk
        valid = part < parts
        record = plan + (first_slot + part) * 8
        tl.store(record, zeros + seq, mask=valid)
        tl.store(record + 1, zeros + token, mask=valid)
        tl.store(record + 2, zeros + row, mask=valid)
        tl.store(record + 3, begin + part * length, mask=valid)
        tl.store(record + 4, tl.minimum(begin + (part + 1) * length, end), mask=valid)
        tl.store(record + 5, zeros + parts, mask=valid)
        tl.store(record + 6, zeros + first_slot, mask=valid)
        if SHARED:
            tl.store(record + 7, zeros + joined, mask=valid)
    for start in range(used + seq * CHUNK, seq_cap, tl.num_programs(0) * CHUNK):
        slot = start + chunk
        tl.store(plan + slot * 8, zeros - 1, mask=slot < seq_cap)


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def multiprocessors(device: torch.device) -> int:
    """Of a CUDA device; 1 elsewhere (the interpreter)."""
    if device.type != "cuda":
        return 1
    return _multiprocessors(torch.cuda.current_device() if device.index is None else device.index)


def bounds(
    batch: AttentionBatch, kv_heads: int, cut: Parts, sliding_window: int = 0
) -> tuple[int, int]:
    """(slots wanted of a batch without short sequences, slots at most)."""
    seqs = batch.num_decodes
    programs = cut.many_programs if seqs >= cut.many_seqs else cut.programs
    wanted = max(1, programs * multiprocessors(batch.context_lens.device) // kv_heads)
    # The longest that a batch can be, cut into parts of the least length: no more slots than that.
    longest = max(1, batch.max_context_len)
    span = min(longest, sliding_window) if sliding_window else longest
    return wanted, min(wanted + seqs, seqs * cdiv(span, cut.min_keys))


def shared_bound(tiles: Tiles, kv_heads: int, device: torch.device) -> int:
    """Items of shared keys that run at once."""
    at_once = max(1, 8 // tiles.warps) * multiprocessors(device)
    return min(max(1, at_once // kv_heads), _MOST_SHARED_PARTS)


def _room_for_shared(
    batch: AttentionBatch, sharing: Sharing, wanted: int, tile_seqs: int
) -> SharedKeys:
    seqs, device = batch.num_decodes, batch.context_lens.device
    # Each group has a chunk that need not be full.
    most_chunks = seqs // tile_seqs + seqs // sharing.rows
    items = torch.empty(1 + wanted + most_chunks, 8, dtype=torch.int32, device=device)
    members = torch.empty(seqs, 2, dtype=torch.int32, device=device)
    # parts of a sequence <= 1 + its keys / part_keys, and the chunks' keys / part_keys <= wanted.
    return SharedKeys(items, members, partials=seqs + wanted * tile_seqs)


def plan_attention_triton(
    batch: AttentionBatch,
    *,
    heads: int,
    key_cache: Tensor,
    cut: Parts | None = None,
    sharing: Sharing | None = None,
) -> AttentionBatch:
    seqs = batch.num_decodes
    if seqs == 0:
        return batch
    cut, sharing = cut or PARTS, sharing or SHARING
    _, kv_heads, block_size, head_size = key_cache.shape
    wanted, slots = bounds(batch, kv_heads, cut)
    plan = torch.empty(slots, RECORD, dtype=torch.int32, device=batch.context_lens.device)
    shared, groups, shared_wanted, tile_seqs = None, plan, 1, 1
    enough = sharing.seqs if batch.max_query_len == 1 else sharing.mixed_seqs
    if batch.may_share and seqs >= enough and batch.max_context_len > sharing.keys:
        group = heads // kv_heads
        tiles = shared_tiles(group, head_size, key_cache.element_size(), seqs)
        shared_wanted = shared_bound(tiles, kv_heads, plan.device)
        tile_seqs = tiles.block_m // group
        groups = find_shared_triton(batch, block_size, sharing)
        shared = _room_for_shared(batch, sharing, shared_wanted, tile_seqs)
    attention_plan_kernel[(seqs,)](
        plan, batch.rows, batch.query_starts, batch.context_lens, groups,
        plan if shared is None else shared.items, plan if shared is None else shared.members,
        seqs, wanted, cut.min_keys, slots, shared_wanted, sharing.min_keys, sharing.saved_keys,
        tile_seqs,
        SEQS_PAD=seqs_pad(seqs), ROUND=cut.multiple, CHUNK=_CHUNK, SHARED=shared is not None,
        SHARED_ROUND=sharing.multiple, num_warps=1,
        **launch_options(batch.context_lens.device.index),
    )  # fmt: skip
    return batch._replace(plan=plan, shared=shared)


def plan_attention_torch(batch: AttentionBatch, *, heads: int, key_cache: Tensor) -> AttentionBatch:
    return batch


def variants() -> list[Variant]:
    tensors = ("plan", "rows", "query_starts", "context_lens", "groups", "items", "members")
    numbers = (
        "seqs", "wanted", "min_keys", "seq_cap", "shared_wanted", "min_shared", "min_saved",
        "tile_seqs",
    )  # fmt: skip
    return [
        Variant(
            name=f"attention_plan seqs {seqs}" + " shared" * shared,
            kernel=attention_plan_kernel,
            signature={**dict.fromkeys(tensors, "*i32"), **dict.fromkeys(numbers, "i32")},
            constants={
                "SEQS_PAD": seqs, "ROUND": PARTS.multiple, "CHUNK": _CHUNK, "PDL": False,
                "SHARED": shared, "SHARED_ROUND": SHARING.multiple,
            },
            divisible=tensors,
            warps=1,
        )
        for seqs in SEQ_CLASSES
        for shared in (False, True)
    ]  # fmt: skip
