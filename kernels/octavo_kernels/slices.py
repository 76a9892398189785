"""Draw where each rank has a slice of the vocabulary: the best of a slice, and the best of all.

A slice's best candidate is a score (a logit, or logit / temperature + noise of the whole
vocabulary's id) and its id. Both travel as one int64, whose order is the candidates' own: the
larger score first, of equal scores the lower id, as on one device. Only for rows without filters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .gumbel import gumbel_noise
from .language import (
    Variant,
    cdiv,
    gdc_launch_dependents,
    gdc_wait,
    jit,
    launch_options,
    next_power_of_2,
    tl,
)
from .ops import SamplingRows
from .scan import BLOCK as SCAN_BLOCK
from .scan import COLDEST, COMPILED_FOR, scan_triton

LARGEST = 2**31 - 1
LOW_BITS = 2**32 - 1


@jit
def join_kernel(
    out,  # int64 [n]: candidates
    scores,  # float32 [n, chunks]: what scan_kernel left
    score_ids,  # int32 [n, chunks], ids within the slice
    chunks,
    first_id,
    CHUNKS: tl.constexpr,  # power of 2, >= chunks
    PDL: tl.constexpr,
):
    """One row a program."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    index = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, CHUNKS)
    here = chunk < chunks
    score = tl.load(scores + index * chunks + chunk, mask=here, other=float("-inf"))
    ids = tl.load(score_ids + index * chunks + chunk, mask=here, other=0x7FFFFFFF)
    top = tl.max(score, 0)
    winner = tl.min(tl.where(here & (score == top), ids, 0x7FFFFFFF), 0) + first_id
    top = tl.where(top == 0.0, 0.0, top)  # of the two zeros, which are equal, one
    bits = top.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    tl.store(out + index, (ordered << 32) | (0x7FFFFFFF - winner).to(tl.int64))


@jit
def choose_kernel(
    out,  # int64 [n]
    last_tokens,  # int64 [max_rows + 1], written at rows
    candidates,  # int64 [ranks, n]
    rows,  # int32 [n]
    count,  # n
    ranks,
    RANKS: tl.constexpr,  # power of 2, >= ranks
    PDL: tl.constexpr,
):
    """One row a program."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    index = tl.program_id(0).to(tl.int64)
    rank = tl.arange(0, RANKS)
    place = candidates + rank.to(tl.int64) * count + index
    best = tl.max(tl.load(place, mask=rank < ranks, other=-0x8000000000000000), 0)
    winner = 0x7FFFFFFF - (best & 0xFFFFFFFF)
    tl.store(out + index, winner)
    tl.store(last_tokens + tl.load(rows + index), winner)


def best_of_slice_triton(
    logits: Tensor, rows: Tensor, positions: Tensor, state: SamplingRows, first_id: int
) -> Tensor:
    count, width = logits.shape
    device = logits.device
    out = torch.empty(count, dtype=torch.int64, device=device)
    if count == 0:
        return out
    found, chunks = scan_triton(logits, rows, positions, state, first_id)
    join_kernel[(count,)](
        out, found.scores, found.score_ids, chunks, first_id,
        CHUNKS=next_power_of_2(cdiv(width, SCAN_BLOCK)), num_warps=4,
        **launch_options(device.index),
    )  # fmt: skip
    return out


def best_of_all_triton(candidates: Tensor, rows: Tensor, state: SamplingRows) -> Tensor:
    ranks, count = candidates.shape
    out = torch.empty(count, dtype=torch.int64, device=candidates.device)
    if count == 0:
        return out
    assert candidates.is_contiguous()
    choose_kernel[(count,)](
        out, state.last_tokens, candidates, rows, count, ranks,
        RANKS=next_power_of_2(ranks), num_warps=1, **launch_options(candidates.device.index),
    )  # fmt: skip
    return out


def best_of_slice_torch(
    logits: Tensor, rows: Tensor, positions: Tensor, state: SamplingRows, first_id: int
) -> Tensor:
    index = rows.long()
    ids = torch.arange(first_id, first_id + logits.shape[1], dtype=torch.int32)
    own = logits.argmax(1)
    scores = logits.gather(1, own[:, None])[:, 0].float()
    for row, temperature in enumerate(state.temperature[index].tolist()):
        if temperature == 0:
            continue
        noise = gumbel_noise(
            state.seeds[index[row : row + 1]], positions[row : row + 1].long(), ids
        )[0]
        noisy = noise.add_(logits[row].float() / max(temperature, COLDEST))
        own[row] = noisy.argmax()
        scores[row] = noisy[own[row]]
    return candidates_of(scores, own + first_id)


def best_of_all_torch(candidates: Tensor, rows: Tensor, state: SamplingRows) -> Tensor:
    drawn = LARGEST - (candidates.amax(0) & LOW_BITS)
    state.last_tokens[rows.long()] = drawn
    return drawn


def candidates_of(scores: Tensor, ids: Tensor) -> Tensor:
    """int64 `[n]` that compare as (score, -id); scores float32 `[n]`, ids int64 `[n]` below 2^31.

    NaN has its place in this order too: ranks agree whatever their logits are.
    """
    # + 0.0: of the two zeros, which are equal, one. As integers floats of one sign are in order, or
    # in reverse where it is set.
    bits = (scores + 0.0).view(torch.int32).long()
    ordered = torch.where(bits < 0, bits ^ LARGEST, bits)
    return (ordered << 32) | (LARGEST - ids)


def variants() -> list[Variant]:
    return [
        *(
            Variant(
                name=f"best of a slice of {vocab // 2}",
                kernel=join_kernel,
                signature={
                    "out": "*i64", "scores": "*fp32", "score_ids": "*i32", "chunks": "i32",
                    "first_id": "i32",
                },
                constants={
                    "CHUNKS": next_power_of_2(cdiv(vocab // 2, SCAN_BLOCK)), "PDL": False,
                },
                divisible=("out", "scores", "score_ids", "first_id"),
            )
            for _, vocab in COMPILED_FOR
        ),
        Variant(
            name="best of two slices",
            kernel=choose_kernel,
            signature={
                "out": "*i64", "last_tokens": "*i64", "candidates": "*i64", "rows": "*i32",
                "count": "i32", "ranks": "i32",
            },
            constants={"RANKS": 2, "PDL": False},
            divisible=("out", "last_tokens", "candidates", "rows"),
            warps=1,
        ),
    ]  # fmt: skip
