from __future__ import annotations

import pytest
import torch

from octavo_kernels.linear import linear_torch, prepare_linear_torch

from .tables import assert_close


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [0, 1, 7, 50])
@pytest.mark.parametrize(("outputs", "inputs"), [(96, 64), (101, 33)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_prepared_weight_multiplies_as_plain(
    dtype: torch.dtype, rows: int, outputs: int, inputs: int, with_bias: bool
) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
    x = torch.randn(rows, inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype) if with_bias else None
    actual = linear_torch(x, prepare_linear_torch(weight), bias)
    assert actual.shape == (rows, outputs)
    assert actual.dtype == dtype
    wanted = x.float() @ weight.float().T + (bias.float() if bias is not None else 0)
    assert_close(actual, wanted, dtype)


def test_strided_rows() -> None:
    """Rows picked out of a wider tensor, as a slice of hidden states is."""
    torch.manual_seed(0)
    wide, weight = torch.randn(6, 128), torch.randn(32, 64) / 8
    actual = linear_torch(wide[::2, :64], prepare_linear_torch(weight))
    assert_close(actual, wide[::2, :64] @ weight.T, torch.float32)
