from __future__ import annotations

import pytest
import torch

from . import oracle
from .tables import DEVICES, NAMES_AND_DTYPES, assert_close, table


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
@pytest.mark.parametrize("width", [80, 576, 1025])
def test_equals_oracle(name: str, dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, width).to(DEVICES[name], dtype), torch.randn(width)
    weight = weight.to(DEVICES[name], dtype)
    actual = table(name).rms_norm(x, weight, 1e-5)
    assert actual.dtype == dtype
    assert_close(actual, oracle.rms_norm(x.cpu(), weight.cpu(), 1e-5), dtype)


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
def test_adds_to_the_residual_in_place(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, residual = (torch.randn(5, 576).to(DEVICES[name], dtype) for _ in range(2))
    weight = torch.randn(576).to(DEVICES[name], dtype)
    total = (residual.float() + x.float()).to(dtype)
    before = x.clone()
    actual = table(name).rms_norm(x, weight, 1e-5, residual)
    assert torch.equal(residual, total)
    assert torch.equal(x, before)
    assert_close(actual, oracle.rms_norm(total.cpu(), weight.cpu(), 1e-5), dtype)


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_per_head_on_views_of_qkv(name: str) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(4, 7, 128).to(DEVICES[name])
    view, weight = qkv[:, 2:5], torch.randn(128).to(DEVICES[name])
    actual = table(name).rms_norm(view, weight, 1e-6)
    assert actual.shape == (4, 3, 128)
    assert_close(actual, oracle.rms_norm(view.cpu(), weight.cpu(), 1e-6), torch.float32)


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_no_rows(name: str) -> None:
    x = torch.empty(0, 64, device=DEVICES[name])
    assert table(name).rms_norm(x, x.new_ones(64), 1e-5).shape == (0, 64)
