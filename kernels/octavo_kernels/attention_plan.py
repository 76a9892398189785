"""Which part of which sequence each slot of a decode attention launch has: made once a step.

Every layer cuts the same contexts, so one small kernel behind `step_inputs` cuts them for all; a
decode program then reads one record instead of every sequence's context. Layers with a sliding
window cut their spans themselves.
"""

from __future__ import annotations

import functools

import torch

from .language import Variant, cdiv, gdc_wait, jit, launch_options, next_power_of_2, tl
from .ops import AttentionBatch
from .tiles import Parts

PARTS = Parts()
RECORD = 8
"""int32s of a record: sequence (-1: no work), first token, row, first key, end, parts, the first
part's slot, spare. 32 bytes: one sector of memory."""

# Sequences that a program looks at to find its own: classes, because each is compiled.
SEQ_CLASSES = (16, 128, 512)
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
def attention_plan_kernel(
    plan,  # int32 [slots, 8]
    rows,  # int32 [seqs]
    query_starts,  # int32 [seqs + 1]
    context_lens,  # int32 [seqs]
    seqs,
    wanted,
    min_keys,
    seq_cap,  # slots
    SEQS_PAD: tl.constexpr,
    ROUND: tl.constexpr,
    CHUNK: tl.constexpr,
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
    context_len = tl.sum(tl.where(mine, spans, 0), 0)
    token = tl.load(query_starts + seq)
    row = tl.load(rows + seq)

    chunk = tl.arange(0, CHUNK)
    zeros = tl.zeros([CHUNK], tl.int32)
    for start in range(0, parts, CHUNK):
        part = start + chunk
        valid = part < parts
        record = plan + (first_slot + part) * 8
        tl.store(record, zeros + seq, mask=valid)
        tl.store(record + 1, zeros + token, mask=valid)
        tl.store(record + 2, zeros + row, mask=valid)
        tl.store(record + 3, part * length, mask=valid)
        tl.store(record + 4, tl.minimum((part + 1) * length, context_len), mask=valid)
        tl.store(record + 5, zeros + parts, mask=valid)
        tl.store(record + 6, zeros + first_slot, mask=valid)
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


def seqs_pad(seqs: int) -> int:
    return next((size for size in SEQ_CLASSES if size >= seqs), next_power_of_2(seqs))


def bounds(
    batch: AttentionBatch, kv_heads: int, cut: Parts, sliding_window: int = 0
) -> tuple[int, int]:
    """(slots wanted of a batch without short sequences, slots at most)."""
    seqs = batch.num_decodes
    wanted = max(1, cut.programs * multiprocessors(batch.context_lens.device) // kv_heads)
    # The longest that a batch can be, cut into parts of the least length: no more slots than that.
    longest = max(1, batch.max_context_len)
    span = min(longest, sliding_window) if sliding_window else longest
    return wanted, min(wanted + seqs, seqs * cdiv(span, cut.min_keys))


def plan_attention_triton(
    batch: AttentionBatch, *, kv_heads: int, cut: Parts | None = None
) -> AttentionBatch:
    seqs = batch.num_decodes
    if seqs == 0:
        return batch
    cut = cut or PARTS
    wanted, slots = bounds(batch, kv_heads, cut)
    plan = torch.empty(slots, RECORD, dtype=torch.int32, device=batch.context_lens.device)
    attention_plan_kernel[(seqs,)](
        plan, batch.rows, batch.query_starts, batch.context_lens, seqs, wanted, cut.min_keys, slots,
        SEQS_PAD=seqs_pad(seqs), ROUND=cut.multiple, CHUNK=_CHUNK, num_warps=1,
        **launch_options(batch.context_lens.device.index),
    )  # fmt: skip
    return batch._replace(plan=plan)


def plan_attention_torch(batch: AttentionBatch, *, kv_heads: int) -> AttentionBatch:
    return batch


def variants() -> list[Variant]:
    tensors = ("plan", "rows", "query_starts", "context_lens")
    return [
        Variant(
            name=f"attention_plan seqs {seqs}",
            kernel=attention_plan_kernel,
            signature={
                **dict.fromkeys(tensors, "*i32"),
                **dict.fromkeys(("seqs", "wanted", "min_keys", "seq_cap"), "i32"),
            },
            constants={"SEQS_PAD": seqs, "ROUND": PARTS.multiple, "CHUNK": _CHUNK, "PDL": False},
            divisible=tensors,
            warps=1,
        )
        for seqs in SEQ_CLASSES
    ]
