"""Matrix multiply with a layout chosen once per weight.

CPU: oneDNN's blocked layout, reordered at load. F.linear reorders on every call instead.
Measured on 2 cores of an AMD EPYC (AVX-512 bf16), torch 2.11, microseconds plain -> prepacked:

    bf16, out x in     1 row          8 rows         50 rows
    576 x 576          36 -> 21       45 -> 30       133 -> 115
    3072 x 576         99 -> 47       158 -> 93      500 -> 485
    576 x 1536         84 -> 36       96 -> 63       325 -> 274
    49152 x 576        3269 -> 1980   5675 -> 1950   11521 -> 7420
    float32
    3072 x 576         139 -> 70      364 -> 168     1620 -> 1220
    49152 x 576        9470 -> 3600   14994 -> 4000  27954 -> 13927

MKL's own packing (`mkl._mkl_linear`) was slower than both in float32. oneDNN has no fast float16 on
CPUs without avx512_fp16 and refuses to reorder it: such weights stay plain.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from . import skinny_table
from .skinny_dot import dot_linear
from .skinny_few import few_rows_linear
from .skinny_linear import Skinny, counters_on


@functools.cache
def _can_prepack(dtype: torch.dtype) -> bool:
    """Whether this build and CPU can reorder a weight of this dtype and multiply by it."""
    if not torch.backends.mkldnn.is_available() or dtype not in (torch.bfloat16, torch.float32):
        return False
    try:
        probe = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype), 1)
        _prepacked_linear(torch.zeros(1, 16, dtype=dtype), probe, None)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return True


def _prepacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def prepare_linear_torch(weight: Tensor) -> Tensor:
    """`[out, in]` -> the same weight in oneDNN's blocked layout (an opaque tensor of equal shape).

    The result is as large as the weight: callers drop their reference to the plain one.
    """
    if not _can_prepack(weight.dtype) or weight.shape[0] == 0 or weight.shape[1] == 0:
        return weight
    # The row count is a hint; 1, 50 and 512 measured alike at every row count above.
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)


def linear_torch(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x [tokens, in] @ weight.T + bias -> [tokens, out]` in x's dtype, accumulated in float32."""
    if weight.is_mkldnn and x.shape[0] > 0:
        return _prepacked_linear(x, weight, bias)
    if weight.is_mkldnn:
        return x.new_empty((0, weight.shape[0]))
    return F.linear(x, weight, bias)


def prepare_linear_cuda(weight: Tensor) -> Tensor:
    """cuBLAS and the kernels for few rows read `[out, in]` as it is."""
    if weight.is_cuda:
        counters_on(weight.device)  # before any graph is captured
    return weight


def linear_cuda(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Few rows: `skinny_linear`, where it was measured faster. More: cuBLAS, which no Triton matrix
    multiply matches at these shapes."""
    config = choose_skinny(weight, x.shape[0])
    if config is None:
        return linear_torch(x, weight, bias)
    if config.kind == "few":
        return few_rows_linear(config, x, weight, bias)
    return dot_linear(config, x, weight, bias)


def choose_skinny(weight: Tensor, rows: int) -> Skinny | None:
    """How few rows are multiplied by this weight; None: `linear_torch`'s business."""
    if weight.is_mkldnn or not weight.is_contiguous():
        return None
    return skinny_table.choose(weight.element_size(), *weight.shape, rows)
