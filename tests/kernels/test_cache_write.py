from __future__ import annotations

import pytest
import torch

from . import oracle
from .tables import DEVICES, table


@pytest.mark.parametrize("name", ["torch", "triton"])
@pytest.mark.parametrize(
    ("kv_heads", "head_size", "block_size", "dtype"),
    [(3, 64, 16, torch.float16), (5, 80, 32, torch.float32), (1, 256, 8, torch.bfloat16)],
)
def test_equals_oracle(
    name: str, kv_heads: int, head_size: int, block_size: int, dtype: torch.dtype
) -> None:
    """Strided views of a fused qkv; -1 skips; nothing else in the cache changes."""
    torch.manual_seed(0)
    device = DEVICES[name]
    qkv = torch.randn(6, 4 * kv_heads, head_size).to(device, dtype)
    key, value = qkv[:, 2 * kv_heads : 3 * kv_heads], qkv[:, 3 * kv_heads :]
    caches = [torch.randn(4, kv_heads, block_size, head_size).to(device, dtype) for _ in range(2)]
    wanted = [cache.clone() for cache in caches]
    last = 4 * block_size - 1
    slots = torch.tensor([0, last, -1, block_size, block_size - 1, -1], device=device)
    table(name).cache_write(key, value, *caches, slots)
    oracle.cache_write(key, value, *wanted, slots)
    assert torch.equal(caches[0], wanted[0])
    assert torch.equal(caches[1], wanted[1])


@pytest.mark.parametrize("name", ["torch", "triton"])
@pytest.mark.parametrize("slots", [[], [-1, -1]])
def test_nothing_to_write(name: str, slots: list[int]) -> None:
    device = DEVICES[name]
    cache = torch.zeros(2, 1, 16, 64, device=device)
    key = torch.ones(len(slots), 1, 64, device=device)
    where = torch.tensor(slots, dtype=torch.int64, device=device)
    table(name).cache_write(key, key, cache, cache, where)
    assert not cache.any()
