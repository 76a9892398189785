"""The sampler's first pass over a step's logits, a row spread over many programs.

Each leaves for its chunk of the vocabulary what the row's answer is made of: the best score (logit
or noisy logit), and for rows with filters the best logit, the mass, and the peak of each group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .gumbel import gumbel_log2
from .language import Variant, cdiv, gdc_launch_dependents, gdc_wait, jit, launch_options, tl
from .ops import SamplingRows
from .thresholds import load_logits

# Temperatures below count as this, which still draws among equals: their inverse is no infinity.
COLDEST = 1e-5

# Logits whose peak is kept.
GROUP = 64
# Vocabulary entries per step of a program: 8 a thread over 4 warps, 47 to 64 registers.
BLOCK = 1024
# Programs that are on the GPU at a time: 8 on each of 132 multiprocessors. More rows than that
# share out get longer chunks rather than more programs.
PROGRAMS = 1056


def shares(rows: int, vocab: int, block: int, programs: int) -> tuple[int, int]:
    """How to spread rows over programs: (chunks of a row, tiles of `block` in a chunk)."""
    tiles = cdiv(cdiv(vocab, block), max(1, programs // rows))
    return cdiv(vocab, block * tiles), tiles


@jit
def scan_kernel(
    scores,  # float32 [n, chunks], written but for rows with top-k: best score
    score_ids,  # int32 [n, chunks], likewise: whose it is, the lowest of equals
    bests,  # float32 [n, chunks], written for rows with filters: best logit
    masses,  # float32 [n, chunks], likewise: sum of exp((x - best) / t)
    peaks,  # float32 [n, groups], likewise
    logits,  # [n, vocab]
    rows,  # int32 [n]
    temperatures,  # float32 [max_rows + 1], as are the next five
    top_ks,  # int32
    top_ps,  # float32
    min_ps,  # float32
    seeds,  # int64
    positions,  # int64 or int32 [n]
    first_id,  # of the logits; `vocab` are there. 0 but where ranks share a vocabulary
    vocab,
    chunks,
    groups,
    tiles,  # of BLOCK logits, in a chunk
    stride_row: tl.int64,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (row, chunk of its vocabulary)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    index = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    owner = tl.load(rows + index)
    temperature = tl.load(temperatures + owner)
    k = tl.load(top_ks + owner)
    has_k = (k > 0) & (k < vocab)
    asks = has_k | (tl.load(top_ps + owner) < 1.0) | (tl.load(min_ps + owner) > 0.0)
    asks = asks & (temperature != 0.0)
    scale = 1.4426950408889634 / tl.maximum(temperature, 1e-5)  # as COLDEST
    seed = tl.load(seeds + owner)
    position = tl.load(positions + index).to(tl.int64)
    row = logits + index * stride_row
    begin = chunk * tiles * BLOCK
    end = tl.minimum(begin + tiles * BLOCK, vocab)
    place = index * chunks + chunk
    draws = (~asks) | (~has_k)
    best_score = tl.full([BLOCK], float("-inf"), tl.float32)
    best_id = tl.zeros([BLOCK], tl.int32)
    # By fours: one step of a running maximum and its rescaling for four logits.
    best_logit = tl.full([BLOCK // 4], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK // 4], tl.float32)
    for first in range(begin, end, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        x = load_logits(row, ids, ids < end)
        if asks:
            group = first // GROUP + tl.arange(0, BLOCK // GROUP)
            peak = tl.max(tl.reshape(x, [BLOCK // GROUP, GROUP]), 1)
            tl.store(peaks + index * groups + group, peak, mask=group < groups)
            fours = tl.reshape(x, [BLOCK // 4, 4])
            better_logit = tl.maximum(best_logit, tl.max(fours, 1))
            base = tl.where(better_logit == float("-inf"), 0.0, better_logit)
            mass = mass * tl.exp2((best_logit - base) * scale)
            mass += tl.sum(tl.exp2((fours - base[:, None]) * scale), 1)
            best_logit = better_logit
        if draws:
            score = x
            if temperature != 0.0:
                score = x * scale + gumbel_log2(seed, position, first_id + ids)
            better = score > best_score
            best_score = tl.where(better, score, best_score)
            best_id = tl.where(better, ids, best_id)
    if asks:
        best = tl.max(best_logit, 0)
        base_of_all = tl.where(best == float("-inf"), 0.0, best)
        mass *= tl.exp2((best_logit - base_of_all) * scale)
        tl.store(bests + place, best)
        tl.store(masses + place, tl.sum(mass, 0))
    if draws:
        top = tl.max(best_score, 0)
        lowest = tl.min(tl.where(best_score == top, best_id, 0x7FFFFFFF), 0)
        tl.store(scores + place, top)
        tl.store(score_ids + place, lowest)


class Scanned(NamedTuple):
    """What the kernel leaves; its shapes are flat and rounded up."""

    scores: Tensor
    score_ids: Tensor
    bests: Tensor
    masses: Tensor
    peaks: Tensor


def scratch(parts: int, size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Multiples of 16 bytes, whatever the rows: Triton compiles again for other alignments."""
    return torch.empty(parts, cdiv(size, 4) * 4, dtype=dtype, device=device).unbind()


def scan_triton(
    logits: Tensor, rows: Tensor, positions: Tensor, state: SamplingRows, first_id: int
) -> tuple[Scanned, int]:
    """What is found, and the chunks of a row; logits `[n, ids]`, of the ids from `first_id` on."""
    count, width = logits.shape
    device = logits.device
    assert logits.stride(1) == 1
    chunks, tiles = shares(count, width, BLOCK, PROGRAMS)
    groups = cdiv(width, GROUP)
    scores, bests, masses = scratch(3, count * chunks, torch.float32, device)
    (score_ids,) = scratch(1, count * chunks, torch.int32, device)
    (peaks,) = scratch(1, count * groups, torch.float32, device)
    found = Scanned(scores, score_ids, bests, masses, peaks)
    scan_kernel[(count, chunks)](
        *found, logits, rows, state.temperature, state.top_k, state.top_p, state.min_p,
        state.seeds, positions, first_id, width, chunks, groups, tiles, logits.stride(0),
        BLOCK=BLOCK, GROUP=GROUP, num_warps=4, **launch_options(device.index),
    )  # fmt: skip
    return found, chunks


# Triton's types of the kernels' arguments, and what the tests compile them for.
ASKED = {
    "rows": "*i32", "temperatures": "*fp32", "top_ks": "*i32", "top_ps": "*fp32",
    "min_ps": "*fp32", "seeds": "*i64", "positions": "*i64", "vocab": "i32", "chunks": "i32",
    "groups": "i32", "stride_row": "i64",
}  # fmt: skip
PARTIAL = {
    "scores": "*fp32", "score_ids": "*i32", "bests": "*fp32", "masses": "*fp32", "peaks": "*fp32",
}  # fmt: skip
COMPILED_FOR = (("bf16", 151_936), ("fp16", 50_257), ("fp32", 128_256))


def variants() -> list[Variant]:
    return [
        Variant(
            name=f"sample scan {dtype} of {vocab}",
            kernel=scan_kernel,
            signature={
                **PARTIAL,
                "logits": f"*{dtype}",
                **ASKED,
                "first_id": "i32",
                "tiles": "i32",
            },
            constants={"BLOCK": BLOCK, "GROUP": GROUP, "PDL": False},
            divisible=(
                *(*PARTIAL, "logits", "first_id"),
                *(("vocab", "stride_row") if vocab % 16 == 0 else ()),
            ),
        )
        for dtype, vocab in COMPILED_FOR
    ]
