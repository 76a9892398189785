from __future__ import annotations

import pytest
import torch

from . import oracle
from .tables import DEVICES, NAMES_AND_DTYPES, assert_close, table


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_equals_oracle(name: str, dtype: torch.dtype, with_residual: bool) -> None:
    """Rows far from zero: the variance must be of centred values."""
    torch.manual_seed(0)
    device = DEVICES[name]
    x = (torch.randn(4, 770) + 30).to(device, dtype)
    weight, bias = (torch.randn(770).to(device, dtype) for _ in range(2))
    residual = torch.randn(4, 770).to(device, dtype) if with_residual else None
    source = x if residual is None else (residual.float() + x.float()).to(dtype)
    actual = table(name).layer_norm(x, weight, bias, 1e-5, residual)
    if residual is not None:
        assert torch.equal(residual, source)
    assert actual.dtype == dtype
    wanted = oracle.layer_norm(source.cpu(), weight.cpu(), bias.cpu(), 1e-5)
    assert_close(actual, wanted, dtype)
