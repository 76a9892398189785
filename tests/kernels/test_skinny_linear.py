"""The products of few rows and what is fused into them; bfloat16 dots only on a GPU."""

from __future__ import annotations

import pytest
import torch

from octavo_kernels import skinny_table
from octavo_kernels.linear_add import linear_add_torch, linear_add_triton
from octavo_kernels.norm_linear import norm_linear_torch, norm_linear_triton
from octavo_kernels.skinny_dot import dot_linear
from octavo_kernels.skinny_few import few_rows_linear
from octavo_kernels.skinny_linear import Skinny, counters_on

from . import oracle
from .tables import DEVICES, assert_close

DEVICE = DEVICES["triton"]
FEW = Skinny("few", 8, 64, 4, 2, 1, 2)
DOT = Skinny("dot", 16, 32, 4, 2, 1, 2)


def randn(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def wanted_of(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, norm: str,
    norm_weight: torch.Tensor, norm_bias: torch.Tensor, epilogue: str,
) -> torch.Tensor:  # fmt: skip
    """float32 by the oracle."""
    host = x.cpu().float()
    if norm == "rms_norm":
        host = oracle.rms_norm(host, norm_weight.cpu(), 1e-5)
    elif norm == "layer_norm":
        host = oracle.layer_norm(host, norm_weight.cpu(), norm_bias.cpu(), 1e-5)
    host = host @ weight.cpu().float().T + (0 if bias is None else bias.cpu().float())
    return getattr(oracle, epilogue)(host) if epilogue else host


@pytest.mark.parametrize(
    ("dtype", "rows", "outs", "ins", "held"),
    [
        (torch.float16, 1, 48, 128, 0),
        (torch.bfloat16, 2, 38, 100, 1),
        (torch.float16, 3, 38, 100, 2),
        (torch.bfloat16, 4, 48, 128, 3),
    ],
)
@pytest.mark.parametrize("norm", ["", "rms_norm", "layer_norm"])
@pytest.mark.parametrize("epilogue", ["", "silu_mul", "gelu", "add"])
def test_few_rows(
    dtype: torch.dtype, rows: int, outs: int, ins: int, held: int, norm: str, epilogue: str
) -> None:
    torch.manual_seed(0)
    add, epilogue = epilogue == "add", epilogue.removeprefix("add")
    weight, bias = randn(outs, ins, dtype=dtype) / 10, randn(outs, dtype=dtype)
    norm_weight, norm_bias = randn(ins, dtype=dtype), randn(ins, dtype=dtype)
    x = randn(rows, ins, dtype=torch.float32 if norm else dtype) * 3 + 2
    given_bias = None if rows == 2 else bias
    wanted = wanted_of(x, weight, given_bias, norm, norm_weight, norm_bias, epilogue)
    residual = randn(rows + 1, outs, dtype=torch.float32)
    before = residual.clone()
    actual = few_rows_linear(
        FEW._replace(held=held), x, weight, given_bias, norm=norm,
        norm_weight=norm_weight, norm_bias=norm_bias, eps=1e-5, epilogue=epilogue,
        residual=residual[:rows] if add else None,
    )  # fmt: skip
    if add:
        wanted += before[:rows].cpu()
        assert torch.equal(residual[rows:], before[rows:])
        assert actual.data_ptr() == residual.data_ptr()
    else:
        assert actual.dtype == dtype
    assert_close(actual, wanted, dtype)


@pytest.mark.parametrize(
    ("rows", "outs", "ins"),
    [(1, 48, 128), (5, 38, 100), (33, 38, 100), (150, 48, 128)],
)
@pytest.mark.parametrize(
    ("splits", "held", "ways"), [(1, 0, 1), (3, 0, 1), (8, 1, 1), (1, 2, 1), (1, 4, 2), (3, 1, 2)]
)
@pytest.mark.parametrize("add", [False, True])
def test_dot(rows: int, outs: int, ins: int, splits: int, held: int, ways: int, add: bool) -> None:
    """8 splits of 4 tiles: some programs have no inputs, and still count."""
    torch.manual_seed(0)
    weight, bias, x = randn(outs, ins) / 10, randn(outs), randn(rows, ins)
    wanted = x.cpu().float() @ weight.cpu().float().T + bias.cpu().float()
    config = DOT._replace(splits=splits, held=held, ways=ways)
    for _ in range(2):  # the counters are zero again
        residual = randn(rows, outs, dtype=torch.float32)
        before = residual.cpu().clone()
        actual = dot_linear(config, x, weight, bias, residual=residual if add else None)
        assert_close(actual, wanted + before if add else wanted, torch.float16)
    assert not counters_on(x.device).any()


@pytest.mark.parametrize("norm", ["", "rms_norm", "layer_norm"])
@pytest.mark.parametrize("epilogue", ["", "silu_mul", "gelu"])
@pytest.mark.parametrize(("splits", "held", "ways"), [(1, 0, 1), (2, 1, 2)])
def test_dot_with_norm_and_activation(
    norm: str, epilogue: str, splits: int, held: int, ways: int
) -> None:
    torch.manual_seed(0)
    outs, ins, rows = 38, 100, 5
    weight, bias = randn(outs, ins) / 10, randn(outs)
    norm_weight, norm_bias = randn(ins), randn(ins)
    x = randn(rows, ins, dtype=torch.float32 if norm else torch.float16) * 3 + 2
    wanted = wanted_of(x, weight, bias, norm, norm_weight, norm_bias, epilogue)
    actual = dot_linear(
        DOT._replace(splits=splits, held=held, ways=ways), x, weight, bias, norm=norm,
        norm_weight=norm_weight, norm_bias=norm_bias, eps=1e-5, epilogue=epilogue,
    )  # fmt: skip
    assert_close(actual, wanted, torch.float16)


@pytest.mark.parametrize("config", [None, FEW, DOT, DOT._replace(fused=1, held=1)])
@pytest.mark.parametrize("activation", [None, "silu_mul", "gelu"])
def test_ops_agree_with_torch_whatever_the_table_says(
    monkeypatch: pytest.MonkeyPatch, config: Skinny | None, activation: str | None
) -> None:
    monkeypatch.setattr(skinny_table, "choose", lambda *_: config)
    torch.manual_seed(0)
    residual, weight, bias = randn(3, 64, dtype=torch.float32), randn(96, 64) / 8, randn(96)
    norm_weight, norm_bias = randn(64), randn(64)
    for norms in ((norm_weight, None), (norm_weight, norm_bias)):
        inputs = (residual, *norms, 1e-5, weight, bias, activation)
        wanted = norm_linear_torch(*(t.cpu() if hasattr(t, "cpu") else t for t in inputs))
        assert_close(norm_linear_triton(*inputs), wanted.float(), torch.float16)
    x, down, down_bias = randn(3, 96), randn(64, 96) / 10, randn(64)
    for chosen in (None, down_bias):
        wanted = residual.cpu().clone()
        host = None if chosen is None else chosen.cpu()
        linear_add_torch(x.cpu(), down.cpu(), host, wanted)
        actual = residual.clone()
        linear_add_triton(x, down, chosen, actual)
        assert_close(actual, wanted, torch.float16)


def test_no_rows() -> None:
    residual, weight = randn(0, 64, dtype=torch.float32), randn(96, 64)
    assert norm_linear_triton(residual, randn(64), None, 1e-5, weight).shape == (0, 96)
    linear_add_triton(randn(0, 96), randn(64, 96), None, residual)


def test_table_is_for_16_bits_and_few_rows() -> None:
    assert skinny_table.choose(4, 4096, 4096, 1) is None
    assert skinny_table.choose(2, 4096, 4096, 257) is None
    assert skinny_table.choose(2, 4096, 4096, 0) is None
    for (element_bytes, outs, ins, bucket), fields in skinny_table.TABLE.items():
        chosen = skinny_table.choose(element_bytes, outs, ins, bucket)
        assert chosen == (None if fields is None else Skinny(*fields))
        assert chosen is None or chosen.kind == "dot" or bucket <= 4
