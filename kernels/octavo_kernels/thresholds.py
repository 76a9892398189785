"""Search a row of logits for the threshold of top-k or top-p, on the device, without sorting.

Bisection of a float32's ordered bits, over a whole row or over candidates that a program holds in
registers. Logits of 16 bits are float32 whose low bits are zero: STEP, a power of two, is the
distance of two neighbours, and spares log2(STEP) of at most 32 steps.
"""

from __future__ import annotations

from .language import jit, tl


@jit
def _ordered(x, STEP: tl.constexpr):
    """int64 that orders as float32 x does, zeros alike; a multiple of STEP is one apart from the
    next, what lies between counts as the one nearer to zero."""
    bits = x.to(tl.int32, bitcast=True)
    steps = ((bits & 0x7FFFFFFF) // STEP).to(tl.int64)
    return tl.where(bits < 0, -steps, steps)


@jit
def _unordered(order, STEP: tl.constexpr):
    bits = (tl.where(order < 0, -order, order) * STEP).to(tl.int32)
    x = bits.to(tl.float32, bitcast=True)
    return tl.where(order < 0, -x, x)


@jit
def load_logits(row, ids, mask):
    """float32; NaN (float16 overflowed) counts as banned, so that it cannot win or poison a sum."""
    x = tl.load(row + ids, mask=mask, other=float("-inf")).to(tl.float32)
    return tl.where(x == x, x, float("-inf"))


@jit
def mass_of(row, vocab, threshold, best, scale, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Of the logits >= threshold: their number (COUNT) or their weight 2^((x - best) scale)."""
    total = tl.zeros([BLOCK], tl.float32)  # per lane: a vocabulary is far below 2^24 * BLOCK
    for begin in range(0, vocab, BLOCK):
        ids = begin + tl.arange(0, BLOCK)
        x = load_logits(row, ids, ids < vocab)
        if COUNT:
            total += tl.where(x >= threshold, 1.0, 0.0)
        else:
            total += tl.where(x >= threshold, tl.exp2((x - best) * scale), 0.0)
    return tl.sum(total, 0)


@jit
def raise_threshold(
    row,
    vocab,
    threshold,
    target,
    best,
    scale,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """Largest value >= threshold above which at least `target` remains, by bisection of its bits.

    Up to 16 passes over a row of bfloat16, 32 of float32, by one program: only a top-k whose set
    is no candidates' subset pays.
    """
    low = _ordered(threshold, STEP)
    high = _ordered(best, STEP)
    while low < high:
        middle = low + (high - low + 1) // 2
        kept = mass_of(row, vocab, _unordered(middle, STEP), best, scale, COUNT, BLOCK)
        if kept >= target:
            low = middle
        else:
            high = middle - 1
    return _unordered(low, STEP)


@jit
def raise_among(x, weights, threshold, target, best, STEP: tl.constexpr):
    """`raise_threshold` over candidates in registers; x and weights of one shape.

    The sum is over all elements at once, a thread's own first: by rows it shuffles once a row.
    """
    low = _ordered(threshold, STEP)
    high = _ordered(best, STEP)
    while low < high:
        middle = low + (high - low + 1) // 2
        kept = tl.sum(tl.where(x >= _unordered(middle, STEP), weights, 0.0))
        if kept >= target:
            low = middle
        else:
            high = middle - 1
    return _unordered(low, STEP)


@jit
def cutoff_of(peaks, best, LIMIT: tl.constexpr, STEP: tl.constexpr):
    """Smallest value that at most LIMIT of the peaks reach; above `best` if more than that tie.

    The lowest finite float32 if no more than LIMIT are finite: then nothing is cut off.
    """
    low = _ordered(tl.min(tl.where(peaks > float("-inf"), peaks, best), 0), STEP)
    high = _ordered(best, STEP) + 1
    if tl.sum((peaks > float("-inf")).to(tl.int32), 0) <= LIMIT:
        low = _ordered(tl.full([], -3.4028234663852886e38, tl.float32), STEP)
        high = low
    while low < high:
        middle = low + (high - low) // 2
        reach = tl.sum((peaks >= _unordered(middle, STEP)).to(tl.int32), 0)
        if reach <= LIMIT:
            high = middle
        else:
            low = middle + 1
    return _unordered(low, STEP)
