"""Search a row of logits for the threshold of top-k or top-p, on the device, without sorting.

Bisection of a float32's ordered bits: at most 32 steps, over a whole row or over candidates that a
program holds in registers.
"""

from __future__ import annotations

from .language import jit, tl


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
def load_logits(row, ids, mask):
    """float32; NaN (float16 overflowed) counts as banned, so that it cannot win or poison a sum."""
    x = tl.load(row + ids, mask=mask, other=float("-inf")).to(tl.float32)
    return tl.where(x == x, x, float("-inf"))


@jit
def mass_of(row, vocab, threshold, best, temperature, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Of the logits >= threshold: their number (COUNT) or their weight exp((x - best) / t)."""
    total = tl.zeros([BLOCK], tl.float32)  # per lane: a vocabulary is far below 2^24 * BLOCK
    for begin in range(0, vocab, BLOCK):
        ids = begin + tl.arange(0, BLOCK)
        x = load_logits(row, ids, ids < vocab)
        if COUNT:
            total += tl.where(x >= threshold, 1.0, 0.0)
        else:
            total += tl.where(x >= threshold, tl.exp((x - best) / temperature), 0.0)
    return tl.sum(total, 0)


@jit
def raise_threshold(
    row, vocab, threshold, target, best, temperature, COUNT: tl.constexpr, BLOCK: tl.constexpr
):
    """Largest value >= threshold above which at least `target` remains, by bisection of its bits.

    32 passes over the row, which the L2 holds; only rows whose set is no candidates' subset pay.
    """
    low = _ordered(threshold)
    high = _ordered(best)
    while low < high:
        middle = low + (high - low + 1) // 2
        kept = mass_of(row, vocab, _unordered(middle), best, temperature, COUNT, BLOCK)
        if kept >= target:
            low = middle
        else:
            high = middle - 1
    return _unordered(low)


@jit
def raise_among(x, weights, threshold, target, best):
    """`raise_threshold` over candidates in registers; x and weights of one shape.

    The sum is over all elements at once, a thread's own first: by rows it shuffles once a row.
    """
    low = _ordered(threshold)
    high = _ordered(best)
    while low < high:
        middle = low + (high - low + 1) // 2
        kept = tl.sum(tl.where(x >= _unordered(middle), weights, 0.0))
        if kept >= target:
            low = middle
        else:
            high = middle - 1
    return _unordered(low)


@jit
def cutoff_of(peaks, best, LIMIT: tl.constexpr):
    """Smallest value that at most LIMIT of the peaks reach; above `best` if more than that tie."""
    low = _ordered(tl.full([], -3.4028234663852886e38, tl.float32))  # as _LOWEST
    high = _ordered(best) + 1
    while low < high:
        middle = low + (high - low) // 2
        reach = tl.sum((peaks >= _unordered(middle)).to(tl.int32), 0)
        if reach <= LIMIT:
            high = middle
        else:
            low = middle + 1
    return _unordered(low)
