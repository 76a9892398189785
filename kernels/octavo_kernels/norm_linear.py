"""A norm and the product that reads it: `linear(norm(residual))`.

On the GPU one launch for 1 to 4 rows (`skinny_linear`: the norm stays float32 there), else two: the
norm writes the weight's dtype, so that no cast is left between it and the product.
"""

from __future__ import annotations

from torch import Tensor

from .layer_norm import layer_norm_torch, layer_norm_triton
from .linear import choose_skinny, linear_cuda, linear_torch
from .rms_norm import rms_norm_torch, rms_norm_triton
from .skinny_linear import few_rows_linear


def norm_linear_triton(
    residual: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    config = choose_skinny(weight, residual.shape[0])
    if config is not None and config.kind == "few":
        return few_rows_linear(
            config, residual, weight, bias,
            prologue="rms_norm" if norm_bias is None else "layer_norm",
            norm_weight=norm_weight, norm_bias=norm_bias, eps=eps,
        )  # fmt: skip
    if norm_bias is None:
        x = rms_norm_triton(residual, norm_weight, eps, out_dtype=weight.dtype)
    else:
        x = layer_norm_triton(residual, norm_weight, norm_bias, eps, out_dtype=weight.dtype)
    return linear_cuda(x, weight, bias)


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
