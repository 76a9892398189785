"""A product that goes into the residual stream: `residual += linear(x)`.

On the GPU few rows (`skinny_linear`) and cuBLAS's accumulating call add to the float32 residual
themselves; cuBLAS's product with a bias is added by `add_kernel`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .language import Variant, cdiv, gdc_launch_dependents, gdc_wait, jit, launch_options, tl
from .linear import choose_skinny, linear_torch
from .skinny_dot import dot_linear
from .skinny_few import few_rows_linear

# Whether cuBLAS adds to the float32 residual itself (16-bit inputs, float32 output, beta 1): saves
# a launch and a pass over the product: 15.0 us instead of 16.5 for 32 x 4096 by 4096 (H100).
ACCUMULATE = True
# Elements per program: 8 a thread over 4 warps, one 16-byte load in bf16.
_BLOCK = 1024


@jit
def add_kernel(residual, product, count, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """residual float32 += product, both contiguous, `count` elements."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    y = tl.load(residual + place, mask=mask, other=0.0)
    y += tl.load(product + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(residual + place, y, mask=mask)


def add_triton(residual: Tensor, product: Tensor) -> None:
    assert residual.is_contiguous()
    assert product.is_contiguous()
    count = residual.numel()
    if count:
        add_kernel[(cdiv(count, _BLOCK),)](
            residual, product, count, BLOCK=_BLOCK, **launch_options(residual.device.index)
        )


def accumulate_cublas(residual: Tensor, x: Tensor, weight: Tensor) -> None:
    """`residual += x @ weight.T` as one cuBLAS call; CUDA only, 16-bit x and weight."""
    torch.ops.aten.addmm.dtype_out(
        residual, x, weight.t(), out_dtype=torch.float32, beta=1, alpha=1, out=residual
    )


def linear_add_triton(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> None:
    config = choose_skinny(weight, x.shape[0])
    if config is not None:
        multiply = few_rows_linear if config.kind == "few" else dot_linear
        multiply(config, x, weight, bias, residual=residual)
    elif ACCUMULATE and bias is None and x.is_cuda and x.element_size() == 2 and x.numel():
        accumulate_cublas(residual, x, weight)
    else:
        add_triton(residual, linear_torch(x, weight, bias))


def variants() -> list[Variant]:
    return [
        Variant(
            name=f"add {dtype}",
            kernel=add_kernel,
            signature={"residual": "*fp32", "product": f"*{dtype}", "count": "i32"},
            constants={"BLOCK": _BLOCK, "PDL": False},
            divisible=("residual", "product", "count"),
        )
        for dtype in ("bf16", "fp16", "fp32")
    ]


def linear_add_torch(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> None:
    residual += linear_torch(x, weight, bias)
