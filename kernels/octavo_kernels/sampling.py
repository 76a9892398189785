"""Draw one token id per row: greedy, temperature, top-k, top-p, min-p, with stateless noise.

All three filters keep the ids whose logit reaches a threshold, so ids of equal logits stand or fall
together, whatever their order: top-k keeps every id as good as the k-th best, top-p every id as
good as the one whose mass crosses top_p (over what top-k left).

The draw is Gumbel-max: argmax(logit / temperature + g) has softmax's distribution when the g are
independent Gumbel(0, 1). g is a hash of (seed, position, id) and nothing else, so a row's draw does
not depend on the batch it is in, on the device, or on how often its step is replayed.

On the GPU two launches: `scan_kernel` spreads each row's vocabulary over many programs, which leave
the best score of their chunk; `finish_kernel`, one program a row, joins them. A row with filters
leaves the peak of every group of 64 logits instead: the groups with the highest peaks hold all its
best logits, and thresholds are searched among those. Only a row whose set is larger than that (a
flat distribution under top-p, a top-k of thousands) is read again as a whole, 32 times a threshold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .gumbel import gumbel, gumbel_noise
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
from .thresholds import cutoff_of, load_logits, mass_of, raise_among, raise_threshold

# Lowest finite float32: a threshold there keeps every id but those at -inf.
_LOWEST = torch.finfo(torch.float32).min
# Best candidates looked at before a whole row is sorted for top-p (CPU).
_FIRST_CANDIDATES = 1024

# Vocabulary entries per step of a program: 16 a thread over 4 warps (scan), 8 over 16 (finish).
_BLOCK = 2048
_FINISH_BLOCK = 4096
# Programs that fill the GPU: 8 of 4 warps on each of 132 multiprocessors. More rows than that
# share out get longer chunks rather than more programs.
_PROGRAMS = 1056
# Logits whose peak is kept, and how many groups are looked at closely: 128 x 64 candidates are 16
# registers of a thread of the finishing program, and hold any top-k to 128 whatever the order.
_GROUP = 64
_CANDIDATE_GROUPS = 128


@jit
def scan_kernel(
    best_values,  # float32 [n, chunks], written: best score; the best logit of a row with filters
    best_ids,  # int32 [n, chunks], written: whose it is, the lowest of equals
    masses,  # float32 [n, chunks], written for rows with filters: sum of exp((x - best) / t)
    peaks,  # float32 [n, groups], written for rows with filters
    logits,  # [n, vocab]
    rows,  # int32 [n]
    temperatures,  # float32 [max_rows + 1], as are the next five
    top_ks,  # int32
    top_ps,  # float32
    min_ps,  # float32
    seeds,  # int64
    positions,  # int64 or int32 [n]
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
    asks = ((k > 0) & (k < vocab)) | (tl.load(top_ps + owner) < 1.0)
    asks = (asks | (tl.load(min_ps + owner) > 0.0)) & (temperature != 0.0)
    seed = tl.load(seeds + owner)
    position = tl.load(positions + index).to(tl.int64)
    row = logits + index * stride_row
    begin = chunk * tiles * BLOCK
    place = index * chunks + chunk
    best_value = tl.full([BLOCK], float("-inf"), tl.float32)
    if asks:
        mass = tl.zeros([BLOCK], tl.float32)  # per lane, relative to the lane's best
        for tile in range(tiles):
            ids = begin + tile * BLOCK + tl.arange(0, BLOCK)
            x = load_logits(row, ids, ids < vocab)
            group = (begin + tile * BLOCK) // GROUP + tl.arange(0, BLOCK // GROUP)
            peak = tl.max(tl.reshape(x, [BLOCK // GROUP, GROUP]), 1)
            tl.store(peaks + index * groups + group, peak, mask=group < groups)
            better = tl.maximum(best_value, x)
            base = tl.where(better == float("-inf"), 0.0, better)
            mass = mass * tl.exp((best_value - base) / temperature)
            mass += tl.exp((x - base) / temperature)
            best_value = better
        best = tl.max(best_value, 0)
        base = tl.where(best == float("-inf"), 0.0, best)
        tl.store(best_values + place, best)
        tl.store(masses + place, tl.sum(mass * tl.exp((best_value - base) / temperature), 0))
    else:
        best_id = tl.zeros([BLOCK], tl.int32)
        for tile in range(tiles):
            ids = begin + tile * BLOCK + tl.arange(0, BLOCK)
            score = load_logits(row, ids, ids < vocab)
            if temperature != 0.0:
                score = score / temperature + gumbel(seed, position, ids)
            better = score > best_value
            best_value = tl.where(better, score, best_value)
            best_id = tl.where(better, ids, best_id)
        best = tl.max(best_value, 0)
        tl.store(best_values + place, best)
        lowest = tl.min(tl.where(best_value == best, best_id, 0x7FFFFFFF), 0)
        tl.store(best_ids + place, lowest)


@jit
def finish_kernel(
    out,  # int64 [n]
    last_tokens,  # int64 [max_rows + 1], written at rows
    candidates,  # int32 [n, CANDIDATES]: scratch for the numbers of a row's best groups
    best_values,  # what scan_kernel left
    best_ids,
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
    values = tl.load(best_values + index * chunks + chunk, mask=chunk < chunks, other=float("-inf"))
    best = tl.max(values, 0)
    has_k = (k > 0) & (k < vocab)
    asks = (has_k | (p < 1.0) | (min_p > 0.0)) & (temperature != 0.0)
    if not asks:
        best_id = tl.load(best_ids + index * chunks + chunk, mask=chunk < chunks, other=0x7FFFFFFF)
        winner = tl.min(tl.where(values == best, best_id, 0x7FFFFFFF), 0)
    else:
        row = logits + index * stride_row
        group = tl.arange(0, GROUPS)
        peak = tl.load(peaks + index * groups + group, mask=group < groups, other=float("-inf"))
        cutoff = cutoff_of(peak, best, CANDIDATES)
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
        base = tl.where(best == float("-inf"), 0.0, best)
        weights = tl.exp((x - base) / temperature)

        threshold = tl.full([], -3.4028234663852886e38, tl.float32)  # as _LOWEST
        mass = tl.load(masses + index * chunks + chunk, mask=chunk < chunks, other=0.0)
        total = tl.sum(mass * tl.exp((values - base) / temperature), 0)
        if has_k:
            target = k.to(tl.float32)
            ones = tl.where(x >= cutoff, 1.0, 0.0)
            if tl.sum(ones) >= target:
                threshold = raise_among(x, ones, cutoff, target, best)
            else:
                threshold = raise_threshold(
                    row, vocab, threshold, target, best, temperature, True, BLOCK
                )
            if p < 1.0:
                if threshold >= cutoff:
                    total = tl.sum(tl.where(x >= threshold, weights, 0.0))
                else:
                    total = mass_of(row, vocab, threshold, base, temperature, False, BLOCK)
        if p < 1.0:
            target = p * total
            floor = tl.maximum(threshold, cutoff)
            if tl.sum(tl.where(x >= floor, weights, 0.0)) >= target:
                threshold = raise_among(x, weights, floor, target, best)
            else:
                threshold = raise_threshold(
                    row, vocab, threshold, target, best, temperature, False, BLOCK
                )
        if min_p > 0.0:
            threshold = tl.maximum(threshold, best + temperature * tl.log(min_p))

        seed = tl.load(seeds + owner)
        position = tl.load(positions + index).to(tl.int64)
        if threshold >= cutoff:
            noisy = x / temperature + gumbel(seed, position, ids)
            score = tl.where(x >= threshold, noisy, float("-inf"))
            top = tl.max(score)
            winner = tl.min(tl.where(score == top, ids, 0x7FFFFFFF))
        else:
            best_value = tl.full([BLOCK], float("-inf"), tl.float32)
            best_every = tl.zeros([BLOCK], tl.int32)
            for begin in range(0, vocab, BLOCK):
                every = begin + tl.arange(0, BLOCK)
                y = load_logits(row, every, every < vocab)
                noisy = y / temperature + gumbel(seed, position, every)
                score_here = tl.where(y >= threshold, noisy, float("-inf"))
                better = score_here > best_value
                best_value = tl.where(better, score_here, best_value)
                best_every = tl.where(better, every, best_every)
            top = tl.max(best_value, 0)
            winner = tl.min(tl.where(best_value == top, best_every, 0x7FFFFFFF), 0)
    tl.store(out + index, winner.to(tl.int64))
    tl.store(last_tokens + owner, winner.to(tl.int64))


def sample_triton(logits: Tensor, rows: Tensor, positions: Tensor, state: SamplingRows) -> Tensor:
    count, vocab = logits.shape
    device = logits.device
    out = torch.empty(count, dtype=torch.int64, device=device)
    if count == 0:
        return out
    assert logits.stride(1) == 1
    blocks = cdiv(vocab, _BLOCK)
    tiles = cdiv(blocks * count, _PROGRAMS)
    chunks = cdiv(blocks, tiles)
    groups = cdiv(vocab, _GROUP)
    scratch = torch.empty(2, count, chunks, dtype=torch.float32, device=device)
    best_ids = torch.empty(count, chunks, dtype=torch.int32, device=device)
    peaks = torch.empty(count, groups, dtype=torch.float32, device=device)
    candidates = torch.empty(count, _CANDIDATE_GROUPS, dtype=torch.int32, device=device)
    asked = (
        logits, rows, state.temperature, state.top_k, state.top_p, state.min_p, state.seeds,
        positions,
    )  # fmt: skip
    options = launch_options(device.index)
    scan_kernel[(count, chunks)](
        scratch[0], best_ids, scratch[1], peaks, *asked, vocab, chunks, groups, tiles,
        logits.stride(0), BLOCK=_BLOCK, GROUP=_GROUP, num_warps=4, **options,
    )  # fmt: skip
    finish_kernel[(count,)](
        out, state.last_tokens, candidates, scratch[0], best_ids, scratch[1], peaks, *asked,
        vocab, chunks, groups, logits.stride(0),
        CHUNKS=next_power_of_2(blocks), GROUPS=next_power_of_2(groups), GROUP=_GROUP,
        CANDIDATES=_CANDIDATE_GROUPS, BLOCK=_FINISH_BLOCK, num_warps=16, **options,
    )  # fmt: skip
    return out


def variants() -> list[Variant]:
    asked = {
        "rows": "*i32", "temperatures": "*fp32", "top_ks": "*i32", "top_ps": "*fp32",
        "min_ps": "*fp32", "seeds": "*i64", "positions": "*i64", "vocab": "i32", "chunks": "i32",
        "groups": "i32", "stride_row": "i64",
    }  # fmt: skip
    partial = {"best_values": "*fp32", "best_ids": "*i32", "masses": "*fp32", "peaks": "*fp32"}
    found = []
    for dtype, vocab in (("bf16", 151_936), ("fp16", 50_257), ("fp32", 128_256)):
        even = ("vocab", "stride_row") if vocab % 16 == 0 else ()
        common = {**partial, "logits": f"*{dtype}", **asked}
        found.append(
            Variant(
                name=f"sample scan {dtype} of {vocab}",
                kernel=scan_kernel,
                signature={**common, "tiles": "i32"},
                constants={"BLOCK": _BLOCK, "GROUP": _GROUP, "PDL": False},
                divisible=(*partial, "logits", *even),
            )
        )
        ends = {"out": "*i64", "last_tokens": "*i64", "candidates": "*i32"}
        found.append(
            Variant(
                name=f"sample finish {dtype} of {vocab}",
                kernel=finish_kernel,
                signature={**ends, **common},
                constants={
                    "CHUNKS": next_power_of_2(cdiv(vocab, _BLOCK)),
                    "GROUPS": next_power_of_2(cdiv(vocab, _GROUP)),
                    "GROUP": _GROUP, "CANDIDATES": _CANDIDATE_GROUPS, "BLOCK": _FINISH_BLOCK,
                    "PDL": False,
                },
                divisible=(*ends, *partial, "logits", *even),
                warps=16,
            )
        )  # fmt: skip
    return found


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
                temperature,
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
