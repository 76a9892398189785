"""A product that goes into the residual stream: `residual += linear(activation(x))`."""

from __future__ import annotations

from torch import Tensor

from .activation import gelu_torch, gelu_triton, silu_mul_torch, silu_mul_triton
from .linear import linear_cuda, linear_torch
from .ops import ActivationName

_TRITON = {"silu_mul": silu_mul_triton, "gelu": gelu_triton}
_TORCH = {"silu_mul": silu_mul_torch, "gelu": gelu_torch}


def linear_add_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    activation: ActivationName | None = None,
) -> None:
    if activation is not None:
        x = _TRITON[activation](x)
    residual += linear_cuda(x, weight, bias)


def linear_add_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    activation: ActivationName | None = None,
) -> None:
    if activation is not None:
        x = _TORCH[activation](x)
    residual += linear_torch(x, weight, bias)
