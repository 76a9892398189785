"""LayerNorm, with the residual addition of a pre-norm transformer folded in.

y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last dimension, in float32, rounded
once to x's dtype (Ba et al. 2016) or to the launcher's out_dtype. With a residual: residual += x in
its own dtype, and x above is that sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .language import (
    TRITON_NAMES,
    Variant,
    gdc_launch_dependents,
    gdc_wait,
    jit,
    launch_options,
    next_power_of_2,
    tl,
)
from .rms_norm import warps_for


@jit
def layer_norm_kernel(
    out,  # [rows, width], contiguous
    x,  # [rows, width]
    weight,  # [width]
    bias,  # [width]
    residual,  # [rows, width], written; ignored unless HAS_RESIDUAL
    width,
    eps,
    stride_x: tl.int64,
    stride_r: tl.int64,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    factor = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    value = tl.load(x + row * stride_x + columns, mask=mask, other=0.0)
    if HAS_RESIDUAL:
        place = residual + row * stride_r + columns
        before = tl.load(place, mask=mask, other=0.0)
        total = before.to(tl.float32) + value.to(tl.float32)
        value = total.to(residual.dtype.element_ty)
        tl.store(place, value, mask=mask)
    wide = value.to(tl.float32)
    mean = tl.sum(wide, 0) / width
    centred = tl.where(mask, wide - mean, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    y = centred * inverse * factor + shift
    tl.store(out + row * width + columns, y.to(out.dtype.element_ty), mask=mask)


def layer_norm_triton(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    rows, width = x.shape
    out = torch.empty(rows, width, dtype=out_dtype or x.dtype, device=x.device)
    if rows == 0:
        return out
    assert x.stride(1) == 1
    assert residual is None or residual.stride(1) == 1
    block = next_power_of_2(width)
    layer_norm_kernel[(rows,)](
        out, x, weight, bias, x if residual is None else residual, width, eps,
        x.stride(0), 0 if residual is None else residual.stride(0),
        HAS_RESIDUAL=residual is not None, BLOCK=block, num_warps=warps_for(block),
        **launch_options(x.device.index),
    )  # fmt: skip
    return out


def variants() -> list[Variant]:
    return [
        Variant(
            name=f"layer_norm {dtype} width {width}{' +residual' * has_residual}",
            kernel=layer_norm_kernel,
            signature={
                "out": f"*{dtype}", "x": f"*{dtype}", "weight": f"*{dtype}", "bias": f"*{dtype}",
                "residual": f"*{dtype}", "width": "i32", "eps": "fp32",
                "stride_x": "i64", "stride_r": "i64",
            },
            constants={
                "HAS_RESIDUAL": has_residual, "BLOCK": next_power_of_2(width), "PDL": False,
            },
            divisible=("out", "x", "weight", "bias", "residual", "width", "stride_x", "stride_r"),
            warps=warps_for(next_power_of_2(width)),
        )
        for dtype in TRITON_NAMES.values()
        for width, has_residual in ((768, True), (1280, False))
    ]  # fmt: skip


def layer_norm_torch(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor:
    if residual is not None:
        residual.add_(x)
        x = residual if residual.dtype == x.dtype else residual.to(x.dtype)
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)
