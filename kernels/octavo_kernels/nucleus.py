"""Draw from a large nucleus (top-p, min-p over nearly equal logits) without looking for its edge.

An id is in the nucleus if the ids above it hold less than top_p of the mass. So the best noisy
score of all ids is the answer if that holds for its id. If not, the answer lies above that id's
logit, and the best score above it is next. With a nucleus of p of the mass the first try succeeds
with probability p, and there are 1 - log(p) on average: any order of accepting and rejecting gives
the argmax over the nucleus, a function of logits and noise alone.

One pass over a row both weighs what lies above a logit and finds the best score there, so that a
try needs one pass. The first is spread over many programs; whichever of a row's ends last makes
the others, and few rows need them.
"""

from __future__ import annotations

from .gumbel import gumbel_log2
from .language import Variant, cdiv, gdc_launch_dependents, gdc_wait, jit, next_power_of_2, tl
from .scan import COMPILED_FOR

# Vocabulary entries per step of a program: 8 a thread over 8 warps.
BLOCK = 2048
# Programs that are on the GPU at a time: 4 on each of 132 multiprocessors.
PROGRAMS = 528


@jit
def look_above(row, begin, end, bound, floor, best, scale, seed, position, BLOCK: tl.constexpr):
    """Of ids in [begin, end) with logits > bound: their mass, and among those >= floor the best
    score and the lowest id that has it (-inf and vocab or more: there is none)."""
    mass = tl.zeros([BLOCK], tl.float32)
    best_score = tl.full([BLOCK], float("-inf"), tl.float32)
    best_id = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
    ids = begin + tl.arange(0, BLOCK)
    following = tl.load(row + ids, mask=ids < end, other=float("-inf"))
    for first in range(begin, end, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        x = following.to(tl.float32)
        # One step ahead: the last programs of a step are alone with the L2's latency.
        following = tl.load(row + ids + BLOCK, mask=ids + BLOCK < end, other=float("-inf"))
        above = x > bound  # NaN is not
        mass += tl.where(above, tl.exp2((x - best) * scale), 0.0)
        score = x * scale + gumbel_log2(seed, position, ids)
        better = above & (x >= floor) & (score > best_score)
        best_score = tl.where(better, score, best_score)
        best_id = tl.where(better, ids, best_id)
    top = tl.max(best_score, 0)
    winner = tl.min(tl.where(best_score == top, best_id, 0x7FFFFFFF), 0)
    return tl.sum(mass, 0), top, winner


@jit
def settle_kernel(
    out,  # int64 [n]: the first try, overwritten if another succeeds
    last_tokens,  # int64 [max_rows + 1], as is out, at rows
    targets,  # float32 [n]: mass that must not lie above the answer, inf without top-p; 0: done
    floors,  # float32 [n]: lowest logit min-p allows
    row_bests,  # float32 [n]: the row's best logit, which masses are relative to
    arrived,  # int32 [n], zero
    scales,  # float32 [n]: log2(e) / temperature
    masses,  # float32 [n, chunks]: scratch, as are the next two
    scores,  # float32
    score_ids,  # int32
    logits,  # [n, vocab]
    rows,  # int32 [n]
    seeds,  # int64 [max_rows + 1]
    positions,  # int64 or int32 [n]
    vocab,
    chunks,
    tiles,  # of BLOCK logits, in a chunk
    stride_row: tl.int64,
    CHUNKS: tl.constexpr,  # power of 2, >= chunks
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (row, chunk of its vocabulary)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    index = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + index)
    if target > 0.0:
        owner = tl.load(rows + index)
        scale = tl.load(scales + index)
        floor = tl.load(floors + index)
        best = tl.load(row_bests + index)
        seed = tl.load(seeds + owner)
        position = tl.load(positions + index).to(tl.int64)
        row = logits + index * stride_row
        bound = tl.load(row + tl.load(out + index)).to(tl.float32)
        begin = tl.program_id(1) * tiles * BLOCK
        end = tl.minimum(begin + tiles * BLOCK, vocab)
        mass, score, winner = look_above(
            row, begin, end, bound, floor, best, scale, seed, position, BLOCK
        )
        place = index * chunks + tl.program_id(1)
        tl.store(masses + place, mass)
        tl.store(scores + place, score)
        tl.store(score_ids + place, winner)
        tl.debug_barrier()  # all three are written before this program counts as arrived
        if tl.atomic_add(arrived + index, 1, sem="acq_rel") == chunks - 1:
            chunk = tl.arange(0, CHUNKS)
            place_of = index * chunks + chunk
            here = chunk < chunks
            mass = tl.sum(tl.load(masses + place_of, mask=here, other=0.0), 0)
            score_of = tl.load(scores + place_of, mask=here, other=float("-inf"))
            id_of = tl.load(score_ids + place_of, mask=here, other=0x7FFFFFFF)
            score = tl.max(score_of, 0)
            winner = tl.min(tl.where(score_of == score, id_of, 0x7FFFFFFF), 0)
            answer = vocab  # none but the first try
            again = (mass >= target) | (bound < floor)
            # `winner` is none only if nothing above the bound reaches the floor.
            while again & (winner < vocab):
                answer = winner
                again = target < float("inf")
                if again:
                    bound = tl.load(row + winner).to(tl.float32)
                    mass, score, winner = look_above(
                        row, 0, vocab, bound, floor, best, scale, seed, position, BLOCK
                    )
                    again = mass >= target
            if answer < vocab:
                tl.store(out + index, answer.to(tl.int64))
                tl.store(last_tokens + owner, answer.to(tl.int64))


# What finish_kernel leaves for each row: Triton's types of the arguments.
LEFT = {
    "targets": "*fp32", "floors": "*fp32", "row_bests": "*fp32", "arrived": "*i32",
    "scales": "*fp32",
}  # fmt: skip


def variants() -> list[Variant]:
    return [
        Variant(
            name=f"sample settle {dtype} of {vocab}",
            kernel=settle_kernel,
            signature={
                "out": "*i64", "last_tokens": "*i64", **LEFT, "masses": "*fp32", "scores": "*fp32",
                "score_ids": "*i32", "logits": f"*{dtype}", "rows": "*i32", "seeds": "*i64",
                "positions": "*i64", "vocab": "i32", "chunks": "i32", "tiles": "i32",
                "stride_row": "i64",
            },
            constants={
                "CHUNKS": next_power_of_2(cdiv(vocab, BLOCK)), "BLOCK": BLOCK, "PDL": False,
            },
            divisible=(
                *("out", "last_tokens", *LEFT, "masses", "scores", "score_ids", "logits"),
                *(("vocab", "stride_row") if vocab % 16 == 0 else ()),
            ),
            warps=8,
        )
        for dtype, vocab in COMPILED_FOR
    ]  # fmt: skip
