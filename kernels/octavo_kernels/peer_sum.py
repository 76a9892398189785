"""The sum of all ranks' parts, through the memory of each other's GPUs, with what follows it fused.

Every rank writes its part into the others' memory and adds what they wrote into its own: one trip
over the link, one launch, in the order of ranks, so that all have the same bits. Two forms:

- words (`sum_words`): a store of 8 bytes carries two 16-bit values and the launch's number, so that
  no mark of its own says when data has come (the idea of NCCL's LL protocol). For small parts.
- blocks (`sum_blocks`): plain stores, then one mark a program. For parts where twice the bytes
  would take longer than a mark.

Data of one launch goes to one half of an inbox, that of the next to the other. A rank that has
all its peers' data of launch n knows that they ended launch n - 1: they sent after it in their
stream. So what it sends in launch n + 1 meets no reader of launch n - 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .language import (
    INTERPRETED,
    Variant,
    cdiv,
    gdc_launch_dependents,
    gdc_wait,
    jit,
    launch_options,
    tl,
)

# Words of a program of sum_words, of 2 values each.
WORDS = 512
# Elements of a block of sum_blocks, and programs of each of its launches.
BLOCK = 4096
PROGRAMS = 264
_WARPS = 8


@jit
def _send_word(place, word, mask):
    """Store int64 `word` at `place` where `mask`, visible to other devices as a whole."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $3, 0; @p st.relaxed.sys.global.b64 [$1], $2; "
        "mov.u32 $0, 0; }",
        "=r,l,l,r", [place.to(tl.int64), word, mask.to(tl.int32)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


if INTERPRETED:

    @jit
    def _send_word(place, word, mask):
        tl.store(place, word, mask=mask)


@jit
def _values(words, DTYPE: tl.constexpr):
    """The two values of each word, float32 [WORDS] each; words int32."""
    low = words.to(tl.int16).to(DTYPE, bitcast=True)
    high = (words >> 16).to(tl.int16).to(DTYPE, bitcast=True)
    return low.to(tl.float32), high.to(tl.float32)


@jit
def sum_words_kernel(
    out,  # ADD: float32, the sum is added to it; else of `part`'s dtype, the sum
    part,  # 16 bits, contiguous, `count` elements, an even number
    launches,  # int32 [programs]: launches so far in which a program took part
    inboxes,  # int64 [RANKS]: addresses of int64 [2, RANKS, capacity] on each rank
    rank,
    count,
    capacity,
    RANKS: tl.constexpr,
    ADD: tl.constexpr,
    WORDS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (share of the words)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    pid = tl.program_id(0)
    launch = tl.load(launches + pid) + 1
    half = (launch & 1) * RANKS
    word = pid * WORDS + tl.arange(0, WORDS)
    mask = word < count // 2
    mine = tl.load(part.to(tl.pointer_type(tl.int32)) + word, mask=mask, other=0)
    marked = (launch.to(tl.int64) << 32) | (mine.to(tl.int64) & 0xFFFFFFFF)
    for peer in tl.static_range(RANKS):
        if peer != rank:
            inbox = tl.load(inboxes + peer).to(tl.pointer_type(tl.int64))
            _send_word(inbox + (half + rank) * capacity + word, marked, mask)
    own = tl.load(inboxes + rank).to(tl.pointer_type(tl.int64))
    dtype: tl.constexpr = part.dtype.element_ty
    low = tl.zeros([WORDS], tl.float32)
    high = low
    for source in tl.static_range(RANKS):
        words = mine
        if source != rank:
            place = own + (half + source) * capacity + word
            found = tl.load(place, mask=mask, other=0, volatile=True)
            while tl.max((((found >> 32).to(tl.int32) != launch) & mask).to(tl.int32)) != 0:
                found = tl.load(place, mask=mask, other=0, volatile=True)
            words = found.to(tl.int32)
        first, second = _values(words, dtype)
        low += first
        high += second
    total = tl.join(low, high)
    within = word[:, None] * 2 + tl.arange(0, 2)[None, :]
    if ADD:
        total += tl.load(out + within, mask=mask[:, None], other=0.0)
    tl.store(out + within, total.to(out.dtype.element_ty), mask=mask[:, None])
    tl.store(launches + pid, launch)


@jit
def _send_block(part, inboxes, marks, block, count, slot, capacity, mark_cap, rank, launch,
                RANKS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """One block of `part` to every peer, then its mark; slot: this rank's in their inboxes."""
    place = block * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    mine = tl.load(part + place, mask=mask, other=0.0)
    for peer in tl.static_range(RANKS):
        if peer != rank:
            inbox = tl.load(inboxes + peer).to(part.dtype)
            tl.store(inbox + slot * capacity + place, mine, mask=mask)
    tl.debug_barrier()  # every thread's stores are in front of the marks
    for peer in tl.static_range(RANKS):
        if peer != rank:
            mark = tl.load(marks + peer).to(tl.pointer_type(tl.int32))
            tl.atomic_xchg(mark + rank * mark_cap + block, launch, sem="release", scope="sys")


@jit
def sum_blocks_kernel(
    out,  # ADD: float32, the sum is added to it; else of `part`'s dtype, the sum
    part,  # contiguous, `count` elements
    launches,  # int32 [programs]: launches so far
    inboxes,  # int64 [RANKS]: addresses of [2, RANKS, capacity] of the part's dtype
    marks,  # int64 [RANKS]: addresses of int32 [RANKS, mark_cap]: a launch's number per block
    rank,
    count,
    capacity,
    mark_cap,
    RANKS: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (share of the blocks, every so manieth).

    The next block is on its way before this one is waited for: the link never rests. As many
    programs in every launch, so that all count alike.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    pid = tl.program_id(0)
    launch = tl.load(launches + pid) + 1
    half = (launch & 1) * RANKS
    blocks = tl.cdiv(count, BLOCK)
    own = tl.load(inboxes + rank).to(part.dtype)
    own_marks = tl.load(marks + rank).to(tl.pointer_type(tl.int32))
    if pid < blocks:
        _send_block(part, inboxes, marks, pid, count, half + rank, capacity, mark_cap, rank, launch,
                    RANKS, BLOCK)  # fmt: skip
    for block in range(pid, blocks, tl.num_programs(0)):
        ahead = block + tl.num_programs(0)
        if ahead < blocks:
            _send_block(part, inboxes, marks, ahead, count, half + rank, capacity, mark_cap, rank,
                        launch, RANKS, BLOCK)  # fmt: skip
        place = block * BLOCK + tl.arange(0, BLOCK)
        mask = place < count
        mine = tl.load(part + place, mask=mask, other=0.0)
        total = tl.zeros([BLOCK], tl.float32)
        if ADD:
            before = tl.load(out + place, mask=mask, other=0.0)
        for source in tl.static_range(RANKS):
            values = mine
            if source != rank:
                mark = own_marks + source * mark_cap + block
                # A peer may be one launch ahead; its data is in the other half then.
                while tl.atomic_add(mark, 0, sem="acquire", scope="sys") - launch < 0:
                    pass
                values = tl.load(
                    own + (half + source) * capacity + place, mask=mask, other=0.0,
                    cache_modifier=".cg",
                )  # fmt: skip
            total += values.to(tl.float32)
        if ADD:
            total += before
        tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)
    tl.store(launches + pid, launch)


@dataclass(frozen=True, slots=True)
class Peers:
    """What one rank needs to sum with its peers, all of it zero in the beginning.

    Inboxes lie in memory that all ranks can write to; `words`, `blocks`, `marks` are int64 [ranks]
    on this rank's device: their addresses there, by rank.
    """

    rank: int
    ranks: int
    words: Tensor
    word_cap: int  # words that an inbox holds from one rank, a multiple of 16
    blocks: Tensor
    block_cap_bytes: int  # likewise, in bytes, a multiple of 16
    marks: Tensor
    word_launches: Tensor  # int32 [word_cap / WORDS]
    block_launches: Tensor  # int32 [PROGRAMS]


def blocks_of(cap_bytes: int) -> int:
    """Blocks, and so marks from one rank, of the largest part that fits, were it of 16 bits."""
    return cdiv(cap_bytes // 2, BLOCK)


def sum_words(peers: Peers, part: Tensor, out: Tensor, add: bool) -> None:
    """`out += sum` (`add`, float32 out) or `out = sum` of all ranks' `part`, 16 bits a value."""
    count = part.numel()
    assert part.is_contiguous()
    assert out.is_contiguous()
    assert part.element_size() == 2
    assert count % 2 == 0
    assert count // 2 <= peers.word_cap
    sum_words_kernel[(cdiv(count // 2, WORDS),)](
        out, part, peers.word_launches, peers.words, peers.rank, count, peers.word_cap,
        RANKS=peers.ranks, ADD=add, WORDS=WORDS, num_warps=_WARPS,
        **launch_options(part.device.index),
    )  # fmt: skip


def sum_blocks(peers: Peers, part: Tensor, out: Tensor, add: bool) -> None:
    """As `sum_words`, for any dtype."""
    assert part.is_contiguous()
    assert out.is_contiguous()
    assert part.nbytes <= peers.block_cap_bytes
    sum_blocks_kernel[(PROGRAMS,)](
        out, part, peers.block_launches, peers.blocks, peers.marks, peers.rank, part.numel(),
        peers.block_cap_bytes // part.element_size(), blocks_of(peers.block_cap_bytes),
        RANKS=peers.ranks, ADD=add, BLOCK=BLOCK, num_warps=_WARPS,
        **launch_options(part.device.index),
    )  # fmt: skip


def sum_torch(parts: list[Tensor], out: Tensor, add: bool) -> None:
    """What every rank's `out` becomes, given all ranks' parts: added up in float32, in order."""
    total = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
    for part in parts:
        total += part
    out.copy_(out + total if add else total)


def variants() -> list[Variant]:
    found = []
    for dtype, ranks, add in (("bf16", 2, True), ("fp16", 2, True), ("bf16", 4, False)):
        ints = {"rank": "i32", "count": "i32", "capacity": "i32"}
        found.append(
            Variant(
                name=f"sum words {dtype} of {ranks} ranks{' +add' * add}",
                kernel=sum_words_kernel,
                signature={
                    "out": "*fp32" if add else f"*{dtype}", "part": f"*{dtype}",
                    "launches": "*i32", "inboxes": "*i64", **ints,
                },
                constants={"RANKS": ranks, "ADD": add, "WORDS": WORDS, "PDL": False},
                divisible=("out", "part", "launches", "inboxes", "count", "capacity"),
                warps=_WARPS,
            )
        )  # fmt: skip
    for dtype, add in (("bf16", True), ("fp32", False)):
        found.append(
            Variant(
                name=f"sum blocks {dtype}{' +add' * add}",
                kernel=sum_blocks_kernel,
                signature={
                    "out": "*fp32", "part": f"*{dtype}", "launches": "*i32", "inboxes": "*i64",
                    "marks": "*i64", "rank": "i32", "count": "i32", "capacity": "i32",
                    "mark_cap": "i32",
                },
                constants={"RANKS": 2, "ADD": add, "BLOCK": BLOCK, "PDL": False},
                divisible=("out", "part", "launches", "inboxes", "marks", "count", "capacity"),
                warps=_WARPS,
            )
        )  # fmt: skip
    return found
