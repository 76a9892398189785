"""What each op must compute, in float32, one element or one sequence at a time.

Slow and obvious on purpose: no batching, no masks, no paging tricks. Every implementation of an op
is judged by these functions, on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    scale: float,
    sliding_window: int = 0,
) -> Tensor:
    """float32 `[tokens, heads, head_size]`; rows of no sequence are zero."""
    tokens, heads, head_size = query.shape
    _, kv_heads, block_size, _ = key_cache.shape
    out = torch.zeros(tokens, heads, head_size)
    starts = query_starts.tolist()
    for seq, context in enumerate(context_lens.tolist()):
        begin, end = starts[seq], starts[seq + 1]
        for token in range(begin, end):
            position = context - (end - token)
            lowest = max(0, position - sliding_window + 1) if sliding_window else 0
            where = [
                (int(block_tables[seq, p // block_size]), p % block_size)
                for p in range(lowest, position + 1)
            ]
            for kv_head in range(kv_heads):
                keys = torch.stack([key_cache[b, kv_head, o].float().cpu() for b, o in where])
                values = torch.stack([value_cache[b, kv_head, o].float().cpu() for b, o in where])
                group = heads // kv_heads
                for head in range(kv_head * group, (kv_head + 1) * group):
                    scores = keys @ query[token, head].float().cpu() * scale
                    out[token, head] = scores.softmax(0) @ values
    return out


def cache_write(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    block_size = key_cache.shape[2]
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            key_cache[slot // block_size, :, slot % block_size] = key[token]
            value_cache[slot // block_size, :, slot % block_size] = value[token]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight.float()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    x = x.float()
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * weight.float() + bias.float()


def rotary(x: Tensor, positions: Tensor, cos_sin: Tensor) -> Tensor:
    out = x.float().clone()
    half = cos_sin.shape[1] // 2
    for token, position in enumerate(positions.tolist()):
        for i in range(half):
            c, s = cos_sin[position, i].item(), cos_sin[position, half + i].item()
            a, b = x[token, :, i].float(), x[token, :, half + i].float()
            out[token, :, i] = a * c - b * s
            out[token, :, half + i] = b * c + a * s
    return out


def silu_mul(x: Tensor) -> Tensor:
    n = x.shape[1] // 2
    gate, up = x[:, :n].float(), x[:, n:].float()
    return gate / (1 + torch.exp(-gate)) * up


def gelu(x: Tensor) -> Tensor:
    x = x.float()
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def kept_ids(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> set[int]:
    """Ids that survive the filters; equal logits stand or fall together."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    best = logits[order[0]]
    kept = [i for i in order if logits[i] > -math.inf]
    if 0 < top_k < len(kept):
        kept = [i for i in kept if logits[i] >= logits[kept[top_k - 1]]]
    weight = {i: math.exp((logits[i] - best) / temperature) for i in kept}
    if top_p < 1:
        total, mass = math.fsum(weight.values()), 0.0
        for i in kept:
            mass += weight[i]
            if mass >= top_p * total:
                kept = [j for j in kept if logits[j] >= logits[i]]
                break
    return {i for i in kept if min_p <= 0 or weight[i] >= min_p}


def gumbel_noise(seed: int, position: int, token: int) -> float:
    """The noise's definition in Python's integers."""
    mask_64, mask_32 = (1 << 64) - 1, (1 << 32) - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask_64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask_64
        return x ^ (x >> 31)

    key = mix((mix((seed + 0x9E3779B97F4A7C15) & mask_64) + position) & mask_64)
    x = (token * 0x9E3779B9 + (key & mask_32)) & mask_32
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask_32
    x ^= key >> 32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & mask_32
    x ^= x >> 16
    v = min(((x & 0x7FFFFFFF) + 0.5) * 2.0**-31, 1 - 2.0**-24)
    return -math.log(-math.log1p(-v))
