from __future__ import annotations

import pytest
import torch

from . import oracle
from .tables import DEVICES, NAMES_AND_DTYPES, assert_close, table


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
@pytest.mark.parametrize("op", ["silu_mul", "gelu"])
@pytest.mark.parametrize("width", [6, 1536])
def test_equals_oracle(name: str, dtype: torch.dtype, op: str, width: int) -> None:
    torch.manual_seed(0)
    x = (torch.randn(3, 2 * width) * 3).to(dtype)
    x[0, 0], x[0, 1] = -60.0, 60.0  # where exp overflows or vanishes
    before = x.clone()
    actual = getattr(table(name), op)(x.to(DEVICES[name]))
    assert actual.dtype == dtype
    assert_close(actual, getattr(oracle, op)(x), dtype)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", ["torch", "triton"])
@pytest.mark.parametrize("op", ["silu_mul", "gelu"])
def test_no_tokens(name: str, op: str) -> None:
    actual = getattr(table(name), op)(torch.empty(0, 64, device=DEVICES[name]))
    assert actual.shape == (0, 32 if op == "silu_mul" else 64)
