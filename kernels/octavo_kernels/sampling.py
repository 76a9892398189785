"""Draw one token id per row: greedy, temperature, top-k, top-p, min-p, with stateless noise.

All three filters keep the ids whose logit reaches a threshold, so ids of equal logits stand or fall
together, whatever their order: top-k keeps every id as good as the k-th best, top-p every id as good
as the one whose mass crosses top_p (over what top-k left).

The draw is Gumbel-max: argmax(logit / temperature + g) has softmax's distribution when the g are
independent Gumbel(0, 1). g is a hash of (seed, position, id) and nothing else, so a row's draw does
not depend on the batch it is in, on the device, or on how often its step is replayed.
"""

from __future__ import annotations

import torch
from torch import Tensor

# splitmix64's finaliser (Steele, Lea, Flood 2014) makes two 32-bit keys of (seed, position);
# lowbias32 (Wellons 2018) with a key mixed into its middle makes 31 bits of (keys, id).
_GOLDEN_64 = 0x9E3779B97F4A7C15
_MIX_64 = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_GOLDEN_32 = 0x9E3779B9
_MIX_32 = (0x7FEB352D, 0x846CA68B)
# Largest v below 1 in float32: keeps -log(1 - v) finite.
_LARGEST_UNIFORM = 1.0 - 2.0**-24

# Best candidates looked at before a whole row is sorted for top-p.
_FIRST_CANDIDATES = 1024
# Sorting pays only for rows whose candidates are fewer than this; top_k above it is found by sorting.
_NO_LIMIT = 1 << 62


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
    """One id (a 0-d tensor) from one row of logits `[vocab]`."""
    if k == 0 and top_p >= 1 and min_p <= 0:
        noise = gumbel_noise(seed, position, ids).squeeze(0)
        return _noisy_argmax(logits, temperature, noise)
    candidates = (logits >= _threshold(logits, temperature, k, top_p, min_p)).nonzero().squeeze(1)
    noise = gumbel_noise(seed, position, candidates.to(torch.int32)).squeeze(0)
    return candidates[_noisy_argmax(logits[candidates], temperature, noise)]


def _noisy_argmax(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
    return noise.add_(logits / temperature).argmax()


def _threshold(
    logits: Tensor, temperature: float, k: int, top_p: float, min_p: float
) -> Tensor:
    """Smallest logit `[]` that survives top-k, top-p and min-p; never -inf if any logit is finite."""
    best = logits.max()
    lowest = torch.finfo(logits.dtype).min
    threshold = best.clamp(max=lowest)
    if k:
        threshold = torch.maximum(threshold, torch.topk(logits, k, sorted=False).values.min())
    if top_p < 1:
        weights = ((logits - best) / temperature).exp_()
        if k:
            weights.masked_fill_(logits < threshold, 0)
        target = weights.sum() * top_p
        first = min(k or _FIRST_CANDIDATES, _FIRST_CANDIDATES, logits.shape[0])
        for count in (first, logits.shape[0]):
            largest, where = weights.topk(count)
            mass = largest.cumsum(0)
            if mass[-1] >= target or count == logits.shape[0]:
                crossing = int((mass < target).sum())
                threshold = torch.maximum(threshold, logits[where[min(crossing, count - 1)]])
                break
    if min_p > 0:
        floor = best + temperature * torch.tensor(min_p, dtype=torch.float32).log()
        threshold = torch.maximum(threshold, floor)
    return threshold
