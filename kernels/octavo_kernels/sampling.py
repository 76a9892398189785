"""Draw one token id per row: greedy, temperature, top-k, top-p, min-p, with stateless noise.

All three filters keep the ids whose logit reaches a threshold, so ids of equal logits stand or fall
together, whatever their order: top-k keeps every id as good as the k-th best, top-p every id as
good as the one whose mass crosses top_p (over what top-k left).

The draw is Gumbel-max: argmax(logit / temperature + g) has softmax's distribution when the g are
independent Gumbel(0, 1). g is a hash of (seed, position, id) and nothing else, so a row's draw does
not depend on the batch it is in, on the device, or on how often its step is replayed.

On the GPU three launches. `scan_kernel` spreads each row's vocabulary over many programs, which
leave the best score of their chunk; `finish_kernel`, one program a row, joins them. A row with
filters also leaves the peak of every group of 64 logits: the groups with the highest peaks hold all
its best logits, and thresholds are searched among those. A nucleus that is larger than that (a flat
distribution) is for `settle_kernel` (nucleus.py), which returns at once where there is none. Only a
top-k that no candidates hold (hundreds) reads the row again as a whole, 16 to 32 times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .gumbel import gumbel_log2, gumbel_noise
from .language import (
    TRITON_NAMES,
    Variant,
    cdiv,
    gdc_launch_dependents,
    gdc_wait,
    jit,
    launch_options,
    next_power_of_2,
    tl,
)
from .nucleus import BLOCK as SETTLE_BLOCK
from .nucleus import LEFT, look_above, settle_kernel
from .nucleus import PROGRAMS as SETTLE_PROGRAMS
from .ops import SamplingRows
from .scan import ASKED, COLDEST, COMPILED_FOR, GROUP, PARTIAL, scan_triton, scratch, shares
from .scan import BLOCK as SCAN_BLOCK
from .thresholds import cutoff_of, load_logits, mass_of, raise_among, raise_threshold

# Lowest finite float32: a threshold there keeps every id but those at -inf.
_LOWEST = torch.finfo(torch.float32).min
# Best candidates looked at before a whole row is sorted for top-p (CPU).
_FIRST_CANDIDATES = 1024

# Vocabulary entries per step of the finishing program: 8 a thread over 16 warps.
_BLOCK = 4096
# Groups of logits looked at closely: 128 x 64 candidates are 16 registers of a thread of the
# finishing program, and hold any top-k to 128 whatever the order.
_CANDIDATE_GROUPS = 128
# Distance of neighbours in float32's bits: logits of 16 bits are searched in fewer steps.
_STEPS = {torch.float32: 1, torch.float16: 1 << 13, torch.bfloat16: 1 << 16}


@jit
def finish_kernel(
    out,  # int64 [n]
    last_tokens,  # int64 [max_rows + 1], written at rows
    targets,  # float32 [n], written, as are the next four: what settle_kernel is asked
    floors,  # float32 [n]
    row_bests,  # float32 [n]
    arrived,  # int32 [n]
    scales,  # float32 [n]
    candidates,  # int32 [n, CANDIDATES]: scratch for the numbers of a row's best groups
    scores,  # what scan_kernel left
    score_ids,
    bests,
    masses,
    peaks,
    logits,
    rows,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    seeds,
    positions,
    vocab,
    chunks,
    groups,
    stride_row: tl.int64,
    CHUNKS: tl.constexpr,  # power of 2, >= chunks
    GROUPS: tl.constexpr,  # likewise
    GROUP: tl.constexpr,
    CANDIDATES: tl.constexpr,  # groups looked at closely
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,  # of the logits' dtype: see thresholds.py
    PDL: tl.constexpr,
):
    """One row a program."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    index = tl.program_id(0).to(tl.int64)
    owner = tl.load(rows + index)
    temperature = tl.load(temperatures + owner)
    k = tl.load(top_ks + owner)
    p = tl.load(top_ps + owner)
    min_p = tl.load(min_ps + owner)
    chunk = tl.arange(0, CHUNKS)
    place = index * chunks + chunk
    here = chunk < chunks
    has_k = (k > 0) & (k < vocab)
    asks = (has_k | (p < 1.0) | (min_p > 0.0)) & (temperature != 0.0)
    wide = p != p  # False, so far
    winner = tl.full([], 0x7FFFFFFF, tl.int32)
    if not (asks & has_k):
        first_try = tl.load(scores + place, mask=here, other=float("-inf"))
        tried = tl.load(score_ids + place, mask=here, other=0x7FFFFFFF)
        winner = tl.min(tl.where(first_try == tl.max(first_try, 0), tried, 0x7FFFFFFF), 0)
    if asks:
        scale = 1.4426950408889634 / tl.maximum(temperature, 1e-5)  # as COLDEST
        row = logits + index * stride_row
        values = tl.load(bests + place, mask=here, other=float("-inf"))
        best = tl.max(values, 0)
        base = tl.where(best == float("-inf"), 0.0, best)
        mass = tl.load(masses + place, mask=here, other=0.0)
        total = tl.sum(mass * tl.exp2((values - base) * scale), 0)
        group = tl.arange(0, GROUPS)
        peak = tl.load(peaks + index * groups + group, mask=group < groups, other=float("-inf"))
        threshold = tl.full([], -3.4028234663852886e38, tl.float32)  # as _LOWEST
        floor = threshold
        if min_p > 0.0:
            floor = tl.minimum(best + tl.log2(min_p) / scale, best)
        if (not has_k) & (p < 1.0) & (min_p <= 0.0):
            # A guess that costs one sum: will the candidates be enough? It decides who finds the
            # answer, not which.
            wide = tl.sum(tl.exp2((peak - base) * scale), 0) < p * total
        if not wide:
            cutoff = cutoff_of(peak, best, CANDIDATES, STEP)
            chosen = peak >= cutoff
            slot = tl.cumsum(chosen.to(tl.int32), 0) - 1
            tl.store(candidates + index * CANDIDATES + slot, group, mask=chosen)
            tl.debug_barrier()  # the list is read by other threads than wrote it
            slots = tl.arange(0, CANDIDATES)
            used = slots < tl.sum(chosen.to(tl.int32), 0)
            picked = tl.load(candidates + index * CANDIDATES + slots, mask=used, other=0)
            ids = picked[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
            x = load_logits(row, ids, used[:, None] & (ids < vocab))
            x = tl.where(x >= cutoff, x, float("-inf"))  # now: every logit of the row >= cutoff
            weights = tl.exp2((x - base) * scale)
            if has_k:
                target = k.to(tl.float32)
                ones = tl.where(x >= cutoff, 1.0, 0.0)
                if tl.sum(ones) >= target:
                    threshold = raise_among(x, ones, cutoff, target, best, STEP)
                else:
                    threshold = raise_threshold(
                        row, vocab, threshold, target, best, scale, True, BLOCK, STEP
                    )
                if p < 1.0:
                    if threshold >= cutoff:
                        total = tl.sum(tl.where(x >= threshold, weights, 0.0))
                    else:
                        total = mass_of(row, vocab, threshold, base, scale, False, BLOCK)
            if p < 1.0:
                target = p * total
                among = tl.maximum(threshold, cutoff)
                if tl.sum(tl.where(x >= among, weights, 0.0)) >= target:
                    threshold = raise_among(x, weights, among, target, best, STEP)
                elif has_k:
                    threshold = raise_threshold(
                        row, vocab, threshold, target, best, scale, False, BLOCK, STEP
                    )
            threshold = tl.maximum(threshold, floor)
            seed = tl.load(seeds + owner)
            position = tl.load(positions + index).to(tl.int64)
            if threshold >= cutoff:
                noisy = x * scale + gumbel_log2(seed, position, ids)
                score = tl.where(x >= threshold, noisy, float("-inf"))
                top = tl.max(score)
                winner = tl.min(tl.where(score == top, ids, 0x7FFFFFFF))
            elif has_k:
                lowest = float("-inf")
                _, _, winner = look_above(
                    row, 0, vocab, lowest, threshold, base, scale, seed, position, BLOCK
                )
            else:
                wide = (p < 1.0) | (tl.load(row + winner).to(tl.float32) < floor)
        tl.store(scales + index, scale)
        tl.store(floors + index, floor)
        tl.store(row_bests + index, base)
        target = tl.where(p < 1.0, tl.maximum(p * total, 1e-30), float("inf"))
        tl.store(targets + index, tl.where(wide & (best > float("-inf")), target, 0.0))
    else:
        tl.store(targets + index, 0.0)
    tl.store(arrived + index, 0)
    winner = tl.minimum(winner, vocab - 1)  # none won: infinite logits. Any id, but an id.
    tl.store(out + index, winner.to(tl.int64))
    tl.store(last_tokens + owner, winner.to(tl.int64))


def sample_triton(logits: Tensor, rows: Tensor, positions: Tensor, state: SamplingRows) -> Tensor:
    count, vocab = logits.shape
    device = logits.device
    out = torch.empty(count, dtype=torch.int64, device=device)
    if count == 0:
        return out
    found, chunks = scan_triton(logits, rows, positions, state, 0)
    groups = cdiv(vocab, GROUP)
    # What the second launch leaves for the third.
    targets, floors, row_bests, scales = scratch(4, count, torch.float32, device)
    (arrived,) = scratch(1, count, torch.int32, device)
    (candidates,) = scratch(1, count * _CANDIDATE_GROUPS, torch.int32, device)
    left = (targets, floors, row_bests, arrived, scales)
    options = launch_options(device.index)
    finish_kernel[(count,)](
        out, state.last_tokens, *left, candidates, *found,
        logits, rows, state.temperature, state.top_k, state.top_p, state.min_p, state.seeds,
        positions, vocab, chunks, groups, logits.stride(0),
        CHUNKS=next_power_of_2(cdiv(vocab, SCAN_BLOCK)), GROUPS=next_power_of_2(groups),
        GROUP=GROUP, CANDIDATES=_CANDIDATE_GROUPS, BLOCK=_BLOCK, STEP=_STEPS[logits.dtype],
        num_warps=16, **options,
    )  # fmt: skip
    chunks, tiles = shares(count, vocab, SETTLE_BLOCK, SETTLE_PROGRAMS)
    masses, scores = scratch(2, count * chunks, torch.float32, device)
    (score_ids,) = scratch(1, count * chunks, torch.int32, device)
    settle_kernel[(count, chunks)](
        out, state.last_tokens, *left, masses, scores, score_ids, logits, rows, state.seeds,
        positions, vocab, chunks, tiles, logits.stride(0),
        CHUNKS=next_power_of_2(cdiv(vocab, SETTLE_BLOCK)), BLOCK=SETTLE_BLOCK,
        num_warps=8, **options,
    )  # fmt: skip
    return out


def variants() -> list[Variant]:
    ends = {
        "out": "*i64", "last_tokens": "*i64", **LEFT, "candidates": "*i32", **PARTIAL,
    }  # fmt: skip
    steps = {str(dtype).removeprefix("torch."): step for dtype, step in _STEPS.items()}
    steps = {TRITON_NAMES[name]: step for name, step in steps.items()}
    return [
        Variant(
            name=f"sample finish {dtype} of {vocab}",
            kernel=finish_kernel,
            signature={**ends, "logits": f"*{dtype}", **ASKED},
            constants={
                "CHUNKS": next_power_of_2(cdiv(vocab, SCAN_BLOCK)),
                "GROUPS": next_power_of_2(cdiv(vocab, GROUP)),
                "GROUP": GROUP, "CANDIDATES": _CANDIDATE_GROUPS, "BLOCK": _BLOCK,
                "STEP": steps[dtype], "PDL": False,
            },
            divisible=(
                *("out", "last_tokens", *LEFT, "candidates", *PARTIAL, "logits"),
                *(("vocab", "stride_row") if vocab % 16 == 0 else ()),
            ),
            warps=16,
        )
        for dtype, vocab in COMPILED_FOR
    ]  # fmt: skip


def sample_torch(logits: Tensor, rows: Tensor, positions: Tensor, state: SamplingRows) -> Tensor:
    index = rows.long()
    temperatures: list[float] = state.temperature[index].tolist()
    drawn = logits.argmax(-1)
    if any(temperatures):
        ks: list[int] = state.top_k[index].tolist()
        ps: list[float] = state.top_p[index].tolist()
        min_ps: list[float] = state.min_p[index].tolist()
        seeds = state.seeds[index]
        vocab = logits.shape[1]
        ids = torch.arange(vocab, dtype=torch.int32, device=logits.device)
        for row, temperature in enumerate(temperatures):
            # A row's intermediates fit in a core's L2; a batch's do not.
            if temperature == 0:
                continue
            drawn[row] = _draw(
                logits[row].float(),
                max(temperature, COLDEST),
                ks[row] if 0 < ks[row] < vocab else 0,
                ps[row],
                min_ps[row],
                seeds[row : row + 1],
                positions[row : row + 1].long(),
                ids,
            )
    state.last_tokens[index] = drawn
    return drawn


def _draw(
    logits: Tensor,
    temperature: float,
    k: int,
    top_p: float,
    min_p: float,
    seed: Tensor,
    position: Tensor,
    ids: Tensor,
) -> Tensor:
    """One id (a 0-d tensor) from one row of logits `[vocab]`, ids int32 `[vocab]`."""
    if not math.isfinite(float(logits.max())):
        # NaN (float16 overflowed) or every id banned: any answer, but no exception, which would
        # take the other rows of the step along.
        return ids[logits.nan_to_num(nan=float("-inf")).argmax()]
    if k:
        kth = torch.topk(logits, k, sorted=False).values.min().clamp_(min=_LOWEST)
        ids = (logits >= kth).nonzero().squeeze(1).to(torch.int32)
        logits = logits[ids]
    if top_p < 1 or min_p > 0:
        best = logits.max()
        threshold = best.clamp(max=_LOWEST)
        if top_p < 1:
            threshold = _top_p_threshold(logits, best, temperature, top_p)
        if min_p > 0:
            threshold = threshold.maximum(best + temperature * math.log(min_p))
        keep = (logits >= threshold).nonzero().squeeze(1)
        ids, logits = ids[keep], logits[keep]
    noise = gumbel_noise(seed, position, ids).squeeze(0)
    return ids[noise.add_(logits / temperature).argmax()]


def _top_p_threshold(logits: Tensor, best: Tensor, temperature: float, top_p: float) -> Tensor:
    """Logit of the id whose mass crosses top_p, counted from the best; looks at few if they do."""
    weights = ((logits - best) / temperature).exp_()
    target = weights.sum() * top_p
    few = min(_FIRST_CANDIDATES, logits.shape[0])
    largest, where = weights.topk(few)
    mass = largest.cumsum(0)
    if few < logits.shape[0] and mass[-1] < target:
        largest, where = weights.sort(descending=True)
        mass = largest.cumsum(0)
    crossing = int((mass < target).sum())
    return logits[where[min(crossing, where.shape[0] - 1)]].clamp(min=_LOWEST)
