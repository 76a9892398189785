"""Activations between the two halves of an MLP, computed in float32 and rounded once (Triton)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .language import (
    TRITON_NAMES,
    Variant,
    cdiv,
    gdc_launch_dependents,
    gdc_wait,
    jit,
    launch_options,
    tl,
)

# Elements per program: 1,024 over 4 warps is 8 a thread, two 16-byte loads in bf16.
_BLOCK = 1024


@jit
def silu_mul_kernel(out, x, width, stride_x: tl.int64, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """out `[tokens, width]`, x `[tokens, 2 * width]`; program (token, block of columns)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    gate = tl.load(x + token * stride_x + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x + token * stride_x + width + columns, mask=mask, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + token * width + columns, y.to(out.dtype.element_ty), mask=mask)


@jit
def gelu_kernel(out, x, width, stride_x: tl.int64, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """out, x `[tokens, width]`; program (token, block of columns)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    a = tl.load(x + token * stride_x + columns, mask=mask, other=0.0).to(tl.float32)
    # 0.5 (1 + tanh(t)) = 1 / (1 + exp(-2 t)), which overflows to the right limits.
    t = 0.7978845608028654 * (a + 0.044715 * a * a * a)
    y = a / (1.0 + tl.exp(-2.0 * t))
    tl.store(out + token * width + columns, y.to(out.dtype.element_ty), mask=mask)


def silu_mul_triton(x: Tensor) -> Tensor:
    return _launch(silu_mul_kernel, x, x.shape[1] // 2)


def gelu_triton(x: Tensor) -> Tensor:
    return _launch(gelu_kernel, x, x.shape[1])


def _launch(kernel: object, x: Tensor, width: int) -> Tensor:
    out = torch.empty(x.shape[0], width, dtype=x.dtype, device=x.device)
    if out.numel():
        kernel[(x.shape[0], cdiv(width, _BLOCK))](
            out, x, width, x.stride(0), BLOCK=_BLOCK, **launch_options(x.device.index)
        )
    return out


def variants() -> list[Variant]:
    return [
        Variant(
            name=f"{name} {dtype}",
            kernel=kernel,
            signature={"out": f"*{dtype}", "x": f"*{dtype}", "width": "i32", "stride_x": "i64"},
            constants={"BLOCK": _BLOCK, "PDL": False},
            divisible=("out", "x", "width", "stride_x"),
        )
        for name, kernel in (("silu_mul", silu_mul_kernel), ("gelu", gelu_kernel))
        for dtype in TRITON_NAMES.values()
    ]


def silu_mul_torch(x: Tensor) -> Tensor:
    """`[tokens, 2 * n] -> [tokens, n]`: silu(first half) * second half.

    Rounds silu to x's dtype before the product, as transformers does.
    """
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu_torch(x: Tensor) -> Tensor:
    """gelu(x) = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), elementwise."""
    return F.gelu(x, approximate="tanh")
