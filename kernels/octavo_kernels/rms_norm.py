"""RMSNorm, with the residual addition of a pre-norm transformer folded in.

y = x / sqrt(mean(x^2) + eps) * weight, over the last dimension (Zhang & Sennrich 2019), in float32,
rounded once to x's dtype, or to out_dtype where the launcher is given one (a float32 residual
stream whose reader multiplies in bfloat16). With a residual: residual += x in its own dtype, and x
above is that sum.
"""

from __future__ import annotations

import torch
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


@jit
def rms_norm_kernel(
    out,  # [rows, width], contiguous
    x,  # [tokens, heads, width]: rows = tokens * heads
    weight,  # [width]
    residual,  # [rows, width], written; ignored unless HAS_RESIDUAL
    heads,
    width,
    eps,
    stride_xt: tl.int64,
    stride_xh: tl.int64,
    stride_r: tl.int64,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    factor = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    source = (row // heads).to(tl.int64) * stride_xt + (row % heads).to(tl.int64) * stride_xh
    value = tl.load(x + source + columns, mask=mask, other=0.0)
    if HAS_RESIDUAL:
        place = residual + row.to(tl.int64) * stride_r + columns
        before = tl.load(place, mask=mask, other=0.0)
        total = before.to(tl.float32) + value.to(tl.float32)
        value = total.to(residual.dtype.element_ty)  # what later layers will read
        tl.store(place, value, mask=mask)
    wide = value.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / width + eps)
    y = wide * inverse * factor
    tl.store(out + row.to(tl.int64) * width + columns, y.to(out.dtype.element_ty), mask=mask)


def warps_for(block: int) -> int:
    """About 16 elements a thread; wider rows than 16 warps hold are not met in practice."""
    return min(16, max(1, block // 512))


def rms_norm_triton(
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    width = x.shape[-1]
    out = torch.empty(x.shape, dtype=out_dtype or x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    assert x.stride(-1) == 1
    assert x.dim() in (2, 3)
    heads = x.shape[1] if x.dim() == 3 else 1
    if residual is not None:
        assert residual.stride(-1) == 1
        assert x.dim() == 2 or residual.is_contiguous()
    block = next_power_of_2(width)
    rms_norm_kernel[(out.numel() // width,)](
        out, x, weight, x if residual is None else residual, heads, width, eps,
        x.stride(0), x.stride(1) if x.dim() == 3 else 0,
        0 if residual is None else residual.stride(-2),
        HAS_RESIDUAL=residual is not None, BLOCK=block, num_warps=warps_for(block),
        **launch_options(x.device.index),
    )  # fmt: skip
    return out


def variants() -> list[Variant]:
    found = []
    for dtype in TRITON_NAMES.values():
        # One float32 case: the residual stream into the weight's dtype.
        for width, has_residual in ((128, False), (576, True), (4096, True), (4096, False)):
            source = "fp32" if (width, has_residual) == (4096, False) else dtype
            block = next_power_of_2(width)
            found.append(
                Variant(
                    name=f"rms_norm {source}->{dtype} width {width}{' +residual' * has_residual}",
                    kernel=rms_norm_kernel,
                    signature={
                        "out": f"*{dtype}", "x": f"*{source}", "weight": f"*{dtype}",
                        "residual": f"*{dtype}", "heads": "i32", "width": "i32", "eps": "fp32",
                        "stride_xt": "i64", "stride_xh": "i64", "stride_r": "i64",
                    },
                    constants={"HAS_RESIDUAL": has_residual, "BLOCK": block, "PDL": False},
                    divisible=(
                        "out", "x", "weight", "residual", "width",
                        "stride_xt", "stride_xh", "stride_r",
                    ),
                    warps=warps_for(block),
                )
            )  # fmt: skip
    return found


def rms_norm_torch(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    if residual is not None:
        residual.add_(x)
        source = residual
    else:
        source = x
    wide = source.float()
    inverse = torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * inverse.unsqueeze(-1)).mul_(weight).to(x.dtype)
