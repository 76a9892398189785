"""A norm, the product that reads it, and its activation: `activation(linear(norm(residual)))`.

On the GPU one launch for few rows (`skinny_linear`: the activation is of the float32 sums), or two
where the norm was measured faster as a launch of its own; else three: the norm writes the weight's
dtype, so that no cast is left between it and the product.
"""

from __future__ import annotations

from torch import Tensor

from .activation import gelu_torch, gelu_triton, silu_mul_torch, silu_mul_triton
from .layer_norm import layer_norm_torch, layer_norm_triton
from .linear import choose_skinny, linear_torch
from .ops import ActivationName
from .rms_norm import rms_norm_torch, rms_norm_triton
from .skinny_dot import dot_linear
from .skinny_few import few_rows_linear
from .skinny_linear import Norm

_TRITON = {"silu_mul": silu_mul_triton, "gelu": gelu_triton}
_TORCH = {"silu_mul": silu_mul_torch, "gelu": gelu_torch}


def norm_linear_triton(
    residual: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: ActivationName | None = None,
) -> Tensor:
    config = choose_skinny(weight, residual.shape[0])
    if config is not None and (config.kind == "few" or config.fused):
        multiply = few_rows_linear if config.kind == "few" else dot_linear
        norm: Norm = "rms_norm" if norm_bias is None else "layer_norm"
        return multiply(
            config, residual, weight, bias, norm=norm, norm_weight=norm_weight,
            norm_bias=norm_bias, eps=eps, epilogue=activation or "",
        )  # fmt: skip
    if norm_bias is None:
        x = rms_norm_triton(residual, norm_weight, eps, out_dtype=weight.dtype)
    else:
        x = layer_norm_triton(residual, norm_weight, norm_bias, eps, out_dtype=weight.dtype)
    if config is not None:
        return dot_linear(config, x, weight, bias, epilogue=activation or "")
    product = linear_torch(x, weight, bias)
    return product if activation is None else _TRITON[activation](product)


def norm_linear_torch(
    residual: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: ActivationName | None = None,
) -> Tensor:
    if norm_bias is None:
        x = rms_norm_torch(residual, norm_weight, eps)
    else:
        x = layer_norm_torch(residual, norm_weight.float(), norm_bias.float(), eps)
    product = linear_torch(x.to(weight.dtype), weight, bias)
    return product if activation is None else _TORCH[activation](product)
