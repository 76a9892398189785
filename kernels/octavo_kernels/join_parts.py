"""The softmax over a sequence's keys from those over its parts, by the last program to end one."""

from __future__ import annotations

from .language import jit, tl

# float32s of accumulators that a joining program holds at a time: 32 registers a thread.
_ELEMENTS = 4096


def parts_at_once(group_pad: int, head_pad: int, shared: bool) -> int:
    # Where heads are small no other part of the kernel needs more registers: with those for shared
    # parts on top, fewer programs would fit (148 a thread, 118 at half as many parts at once).
    elements = _ELEMENTS // 2 if shared and head_pad <= 64 else _ELEMENTS
    return max(2, elements // (group_pad * head_pad))


@jit
def join_parts(
    out,  # this sequence's first head of the group
    stride_oh,
    part_acc,
    part_max,
    part_sum,
    first,  # row of the first part's first head
    parts,
    first_shared,  # likewise of parts of shared keys; SHARED
    shared_parts,
    stride_part,  # rows from a part to the next
    HEAD_SIZE: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    JOIN: tl.constexpr,
    SHARED: tl.constexpr,
):
    """JOIN parts at a time, in order: the result does not depend on who arrives last."""
    group = tl.arange(0, GROUP_PAD)
    dims = tl.arange(0, HEAD_PAD)
    m = tl.full([GROUP_PAD], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    acc = tl.zeros([GROUP_PAD, HEAD_PAD], tl.float32)
    every = parts
    if SHARED:
        every += shared_parts
    for start in range(0, every, JOIN):
        part = start + tl.arange(0, JOIN)
        row = first + part * stride_part
        if SHARED:
            row = tl.where(part < parts, row, first_shared + (part - parts) * stride_part)
        places = row[:, None] + group[None, :]  # [JOIN, GROUP_PAD]
        valid = (part < every)[:, None] & (group < GROUP)[None, :]
        # Past the first-level cache: other multiprocessors wrote these.
        maxima = tl.load(part_max + places, mask=valid, other=float("-inf"), cache_modifier=".cg")
        sums = tl.load(part_sum + places, mask=valid, other=0.0, cache_modifier=".cg")
        accs = tl.load(
            part_acc + places[:, :, None] * HEAD_PAD + dims[None, None, :],
            mask=valid[:, :, None],
            other=0.0,
            cache_modifier=".cg",
        )
        highest = tl.maximum(m, tl.max(maxima, 0))
        safe = tl.where(highest == float("-inf"), 0.0, highest)
        share = tl.exp2(maxima - safe[None, :])
        decay = tl.exp2(m - safe)
        total = total * decay + tl.sum(sums * share, 0)
        acc = acc * decay[:, None] + tl.sum(accs * share[:, :, None], 0)
        m = highest
    tl.store(
        out + (group * stride_oh)[:, None] + dims[None, :],
        (acc / total[:, None]).to(out.dtype.element_ty),
        mask=(group < GROUP)[:, None] & (dims < HEAD_SIZE)[None, :],
    )
