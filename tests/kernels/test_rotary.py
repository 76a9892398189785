from __future__ import annotations

import pytest
import torch

from . import oracle
from .tables import DEVICES, NAMES_AND_DTYPES, assert_close, table


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_size", "rotary_size", "fused"),
    [(9, 3, 64, 64, True), (5, 1, 80, 32, True), (2, 2, 128, 128, False)],
)
def test_equals_oracle(
    name: str,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    head_size: int,
    rotary_size: int,
    fused: bool,
) -> None:
    """In place, in strided views; the value heads and the dimensions past rotary_size stay."""
    torch.manual_seed(0)
    device = DEVICES[name]
    qkv = torch.randn(5, heads + 2 * kv_heads, head_size).to(device, dtype)
    before = qkv.cpu().clone()
    if fused:
        query, key = qkv[:, :heads], qkv[:, heads : heads + kv_heads]
    else:
        query, key = qkv[:, :heads].clone(), qkv[:, heads : heads + kv_heads].clone()
    cos_sin = torch.randn(50, rotary_size)
    positions = torch.tensor([0, 49, 7, 7, 3])
    table(name).rotary(query, key, positions.to(device), cos_sin.to(device))
    wanted = oracle.rotary(before[:, : heads + kv_heads], positions, cos_sin)
    assert_close(query, wanted[:, :heads], dtype)
    assert_close(key, wanted[:, heads:], dtype)
    assert torch.equal(qkv[:, heads + kv_heads :].cpu(), before[:, heads + kv_heads :])
    assert torch.equal(query[..., rotary_size:].cpu(), before[:, :heads, rotary_size:])


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_no_tokens(name: str) -> None:
    device = DEVICES[name]
    query, key = (torch.empty(0, heads, 64, device=device) for heads in (4, 2))
    positions = torch.empty(0, dtype=torch.int64, device=device)
    table(name).rotary(query, key, positions, torch.ones(8, 64, device=device))
