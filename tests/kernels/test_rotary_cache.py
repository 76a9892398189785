from __future__ import annotations

import pytest
import torch

from octavo_kernels import rotary_cache

from . import oracle
from .tables import DEVICES, NAMES_AND_DTYPES, assert_close, table

BLOCK_SIZE = 16
# heads, kv heads, head size, rotary size
SHAPES = [(9, 3, 64, 64), (5, 1, 80, 32), (4, 2, 128, 128)]


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("many", [False, True], ids=["few tokens", "many"])
def test_equals_oracle(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    norm: bool,
    many: bool,
) -> None:
    """Views of one qkv; a slot of -1 leaves the cache; value heads and other slots stay."""
    if many:
        if name == "torch":
            pytest.skip("the CPU path does not tell few tokens from many")
        monkeypatch.setattr(rotary_cache, "_MANY_TOKENS", 1)
    heads, kv_heads, head_size, rotary_size = shape
    torch.manual_seed(0)
    qkv = torch.randn(5, heads + 2 * kv_heads, head_size).to(dtype)
    caches = [torch.randn(4, kv_heads, BLOCK_SIZE, head_size).to(dtype) for _ in range(2)]
    cos_sin, positions = torch.randn(50, rotary_size), torch.tensor([0, 49, 7, 7, 3])
    slots = torch.tensor([0, 4 * BLOCK_SIZE - 1, -1, 17, 15])
    norms = [torch.randn(head_size).to(dtype) for _ in range(2)] if norm else [None, None]

    query, key, value = qkv.split([heads, kv_heads, kv_heads], 1)
    wanted = [query.float(), key.float()]
    if norm:
        wanted = [
            oracle.rms_norm(x, weight, 1e-6).to(dtype).float()
            for x, weight in zip((query, key), norms, strict=True)
            if weight is not None
        ]
    wanted_query, wanted_key = (oracle.rotary(x, positions, cos_sin) for x in wanted)
    wanted_caches = [cache.clone() for cache in caches]
    oracle.cache_write(wanted_key.to(dtype), value, *wanted_caches, slots)

    device = DEVICES[name]
    moved = qkv.to(device)
    on_device = [cache.to(device) for cache in caches]
    table(name).rotary_cache(
        *moved.split([heads, kv_heads, kv_heads], 1), *on_device,
        slots.to(device), positions.to(device), cos_sin.to(device),
        *(None if weight is None else weight.to(device) for weight in norms), 1e-6,
    )  # fmt: skip
    assert_close(moved[:, :heads], wanted_query, dtype)
    assert_close(on_device[0], wanted_caches[0].float(), dtype)
    assert torch.equal(on_device[1].cpu(), wanted_caches[1])
    assert torch.equal(moved[:, heads + kv_heads :].cpu(), value)


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_no_tokens(name: str) -> None:
    device = DEVICES[name]
    query, key = (torch.empty(0, heads, 64, device=device) for heads in (4, 2))
    cache = torch.zeros(2, 2, 16, 64, device=device)
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    table(name).rotary_cache(
        query, key, key, cache, cache, nothing, nothing, torch.ones(8, 64, device=device)
    )
    assert not cache.any()
