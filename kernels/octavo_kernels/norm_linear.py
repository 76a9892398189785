"""A norm and the product that reads it: `linear(norm(residual))`."""

from __future__ import annotations

from torch import Tensor

from .layer_norm import layer_norm_torch, layer_norm_triton
from .linear import linear_cuda, linear_torch
from .rms_norm import rms_norm_torch, rms_norm_triton


def norm_linear_triton(
    residual: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    if norm_bias is None:
        x = rms_norm_triton(residual, norm_weight, eps)
    else:
        x = layer_norm_triton(residual, norm_weight, norm_bias, eps)
    return linear_cuda(x.to(weight.dtype), weight, bias)


def norm_linear_torch(
    residual: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    if norm_bias is None:
        x = rms_norm_torch(residual, norm_weight, eps)
    else:
        x = layer_norm_torch(residual, norm_weight.float(), norm_bias.float(), eps)
    return linear_torch(x.to(weight.dtype), weight, bias)
