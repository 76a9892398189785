"""Draw one token id per row: greedy, temperature, top-k, top-p, min-p, with stateless noise.

All three filters keep the ids whose logit reaches a threshold, so ids of equal logits stand or fall
together, whatever their order: top-k keeps every id as good as the k-th best, top-p every id as
good as the one whose mass crosses top_p (over what top-k left).

The draw is Gumbel-max: argmax(logit / temperature + g) has softmax's distribution when the g are
independent Gumbel(0, 1). g is a hash of (seed, position, id) and nothing else, so a row's draw does
not depend on the batch it is in, on the device, or on how often its step is replayed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .language import Variant, jit, tl

# splitmix64's finaliser (Steele, Lea, Flood 2014) makes two 32-bit keys of (seed, position);
# lowbias32 (Wellons 2018) with a key mixed into its middle makes 31 bits of (keys, id).
_GOLDEN_64 = 0x9E3779B97F4A7C15
_MIX_64 = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_GOLDEN_32 = 0x9E3779B9
_MIX_32 = (0x7FEB352D, 0x846CA68B)
# Largest v below 1 in float32: keeps -log(1 - v) finite.
_LARGEST_UNIFORM = 1.0 - 2.0**-24

# Lowest finite float32: a threshold there keeps every id but those at -inf.
_LOWEST = torch.finfo(torch.float32).min
# Best candidates looked at before a whole row is sorted for top-p.
_FIRST_CANDIDATES = 1024


# Vocabulary entries per program and pass: 16 float32 a thread over 8 warps.
_BLOCK = 4096


@jit
def _mix_64_triton(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@jit
def gumbel(seed, position, ids):
    """`gumbel_noise` of one row: int64 scalars, int32 ids of any shape -> float32."""
    key = _mix_64_triton(seed.to(tl.uint64) + 0x9E3779B97F4A7C15)
    key = _mix_64_triton(key + position.to(tl.uint64))
    low = (key & 0xFFFFFFFF).to(tl.uint32)
    high = (key >> 32).to(tl.uint32)
    x = ids.to(tl.uint32) * 0x9E3779B9 + low
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = x ^ high
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = x ^ (x >> 16)
    v = ((x & 0x7FFFFFFF).to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10  # 2^-31
    v = tl.minimum(v, 0.9999999403953552)  # 1 - 2^-24
    # -log(1 - v). 1 - v drops the low bits of a small v, which decide the largest noises.
    small = v * (1.0 + v * (0.5 + v * 0.3333333333333333))
    return -tl.log(tl.where(v < 0.00390625, small, -tl.log(1.0 - v)))


@jit
def _ordered(x):
    """int64 that orders as float32 x does (and equal for both zeros)."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@jit
def _unordered(order):
    bits = order.to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@jit
def _mass(row, vocab, threshold, best, temperature, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Of the logits >= threshold: their number (COUNT) or their weight exp((x - best) / t)."""
    total = tl.zeros([BLOCK], tl.float32)  # per lane: a vocabulary is far below 2^24 * BLOCK
    for begin in range(0, vocab, BLOCK):
        ids = begin + tl.arange(0, BLOCK)
        x = tl.load(row + ids, mask=ids < vocab, other=float("-inf"))
        if COUNT:
            total += tl.where(x >= threshold, 1.0, 0.0)
        else:
            total += tl.where(x >= threshold, tl.exp((x - best) / temperature), 0.0)
    return tl.sum(total, 0)


@jit
def _raise_threshold(
    row, vocab, threshold, target, best, temperature, COUNT: tl.constexpr, BLOCK: tl.constexpr
):
    """Largest value >= threshold above which at least `target` remains, by bisection of its bits.

    32 passes over the row, which its multiprocessor's cache holds; only rows that ask pay.
    """
    low = _ordered(threshold)
    high = _ordered(best)
    while low < high:
        middle = low + (high - low + 1) // 2
        kept = _mass(row, vocab, _unordered(middle), best, temperature, COUNT, BLOCK)
        if kept >= target:
            low = middle
        else:
            high = middle - 1
    return _unordered(low)


@jit
def sample_kernel(
    out,  # int64 [rows]
    logits,  # float32 [rows, vocab]
    temperatures,  # float32 [rows]
    top_ks,  # int32 [rows]
    top_ps,  # float32 [rows]
    min_ps,  # float32 [rows]
    seeds,  # int64 [rows]
    positions,  # int64 [rows]
    vocab,
    stride_row: tl.int64,
    BLOCK: tl.constexpr,
):
    """One row a program."""
    index = tl.program_id(0)
    row = logits + index.to(tl.int64) * stride_row
    best_value = tl.full([BLOCK], float("-inf"), tl.float32)
    best_id = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, vocab, BLOCK):
        ids = begin + tl.arange(0, BLOCK)
        x = tl.load(row + ids, mask=ids < vocab, other=float("-inf"))
        better = x > best_value
        best_value = tl.where(better, x, best_value)
        best_id = tl.where(better, ids, best_id)
    best = tl.max(best_value, 0)
    temperature = tl.load(temperatures + index)
    if temperature == 0.0:
        winner = tl.min(tl.where(best_value == best, best_id, 0x7FFFFFFF), 0)
        tl.store(out + index, winner.to(tl.int64))
        return

    k = tl.load(top_ks + index)
    p = tl.load(top_ps + index)
    min_p = tl.load(min_ps + index)
    threshold = tl.full([], -3.4028234663852886e38, tl.float32)  # as _LOWEST
    if (k > 0) & (k < vocab):
        threshold = _raise_threshold(
            row, vocab, threshold, k.to(tl.float32), best, temperature, True, BLOCK
        )
    if p < 1.0:
        target = p * _mass(row, vocab, threshold, best, temperature, False, BLOCK)
        threshold = _raise_threshold(row, vocab, threshold, target, best, temperature, False, BLOCK)
    if min_p > 0.0:
        threshold = tl.maximum(threshold, best + temperature * tl.log(min_p))

    seed = tl.load(seeds + index)
    position = tl.load(positions + index)
    best_value = tl.full([BLOCK], float("-inf"), tl.float32)
    best_id = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, vocab, BLOCK):
        ids = begin + tl.arange(0, BLOCK)
        x = tl.load(row + ids, mask=ids < vocab, other=float("-inf"))
        score = tl.where(
            x >= threshold, x / temperature + gumbel(seed, position, ids), float("-inf")
        )
        better = score > best_value
        best_value = tl.where(better, score, best_value)
        best_id = tl.where(better, ids, best_id)
    winner = tl.min(tl.where(best_value == tl.max(best_value, 0), best_id, 0x7FFFFFFF), 0)
    tl.store(out + index, winner.to(tl.int64))


def sample_triton(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    rows, vocab = logits.shape
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        assert logits.dtype == torch.float32
        assert logits.stride(1) == 1
        sample_kernel[(rows,)](
            out, logits, temperature, top_k, top_p, min_p, seeds, positions,
            vocab, logits.stride(0), BLOCK=_BLOCK, num_warps=8,
        )  # fmt: skip
    return out


def variants() -> list[Variant]:
    signature = {
        "out": "*i64", "logits": "*fp32", "temperatures": "*fp32", "top_ks": "*i32",
        "top_ps": "*fp32", "min_ps": "*fp32", "seeds": "*i64", "positions": "*i64",
        "vocab": "i32", "stride_row": "i64",
    }  # fmt: skip
    return [
        Variant(
            name=f"sample{' aligned' * aligned}",
            kernel=sample_kernel,
            signature=signature,
            constants={"BLOCK": _BLOCK},
            divisible=tuple(signature) if aligned else ("out", "logits"),  # GPT-2 has 50,257 ids
            warps=8,
        )
        for aligned in (True, False)
    ]


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def _shift_right(x: Tensor, by: int, bits: int) -> Tensor:
    """Logical shift of a signed integer tensor."""
    return (x >> by).bitwise_and_((1 << (bits - by)) - 1)


def _mix_64(x: Tensor) -> Tensor:
    for shift, factor in ((30, _MIX_64[0]), (27, _MIX_64[1])):
        x = (x ^ _shift_right(x, shift, 64)) * _signed(factor, 64)
    return x ^ _shift_right(x, 31, 64)


def _row_keys(seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Two int32 `[rows]` keys from int64 seeds and positions."""
    mixed = _mix_64(_mix_64(seeds + _signed(_GOLDEN_64, 64)) + positions)
    low = mixed & 0xFFFFFFFF
    high = _shift_right(mixed, 32, 64)
    return _as_int32(low), _as_int32(high)


def _as_int32(x: Tensor) -> Tensor:
    """Low 32 bits of int64 values in [0, 2^32), reinterpreted as int32."""
    return torch.where(x >= 1 << 31, x - (1 << 32), x).to(torch.int32)


def gumbel_noise(seeds: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """Gumbel(0, 1) noise float32 `[rows, n]` for ids int32 `[n]` or `[rows, n]`."""
    low, high = _row_keys(seeds, positions)
    x = (ids * _signed(_GOLDEN_32, 32)) + low.unsqueeze(1)
    x ^= _shift_right(x, 16, 32)
    x *= _MIX_32[0]
    x ^= high.unsqueeze(1)
    x ^= _shift_right(x, 15, 32)
    x *= _signed(_MIX_32[1], 32)
    x ^= _shift_right(x, 16, 32)
    v = x.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_(max=_LARGEST_UNIFORM)
    return v.neg_().log1p_().neg_().log_().neg_()  # -log(-log(1 - v))


def sample_torch(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    rows, vocab = logits.shape
    temperatures: list[float] = temperature.tolist()
    if all(t == 0 for t in temperatures):
        return logits.argmax(-1)
    ks: list[int] = top_k.tolist()
    ps: list[float] = top_p.tolist()
    min_ps: list[float] = min_p.tolist()
    result = torch.empty(rows, dtype=torch.int64, device=logits.device)
    greedy = [row for row in range(rows) if temperatures[row] == 0]
    if greedy:
        index = torch.tensor(greedy, device=logits.device)
        result[index] = logits[index].argmax(-1)
    ids = torch.arange(vocab, dtype=torch.int32, device=logits.device)
    for row in range(rows):  # a row's intermediates fit in a core's L2; a batch's do not
        if temperatures[row] == 0:
            continue
        k = ks[row] if 0 < ks[row] < vocab else 0
        drawn = _draw(
            logits[row],
            temperatures[row],
            k,
            ps[row],
            min_ps[row],
            seeds[row : row + 1],
            positions[row : row + 1],
            ids,
        )
        result[row] = drawn
    return result


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
