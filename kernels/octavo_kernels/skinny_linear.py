"""Matrix multiply for few rows: the weight is streamed once, and what surrounds it is fused.

At 1 to 64 rows a product takes as long as reading its weight, with a small model's weights at 256
too. Two kernels: `skinny_few` for 1 to 4 rows (plain cores) and `skinny_dot` for up to 256 (tensor
cores). Both can begin with the norm in
front of the product and end with what follows it: bias, activation, the addition to the residual.
Which kernel and which tiles a shape gets is measured: `skinny_table.py`.

A kernel of a small model is over before memory has delivered at full speed. So both start on their
weights before they wait for the kernel in front of them: `held` tiles come into registers,
`prefetch` further ones into the L2.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .language import jit, tl

Norm = Literal["", "rms_norm", "layer_norm"]
Epilogue = Literal["", "silu_mul", "gelu"]

# Output tiles that a split product may have: a counter each. 8,192 tiles of 16 are 131,072 outputs,
# as many as any layer has; heads are not split.
COUNTERS = 8192


class Skinny(NamedTuple):
    """How one product is cut; `kind` names the kernel."""

    kind: Literal["few", "dot"]
    block_out: int  # rows of the weight; under "silu_mul" half of them gate, half up
    block_in: int
    warps: int
    stages: int  # tiles in flight
    splits: int  # programs that share an output tile; "few": 1
    prefetch: int  # tiles asked for before the wait
    held: int = 0  # tiles in registers before the wait
    fused: int = 0  # whether the norm in front is part of the product; "few": always
    ways: int = 1  # shares of a tile's inputs that go to different warps; "few": 1
    tile_rows: int = 64  # that a program multiplies, where there are more than 64


@jit
def prefetch(tile, stride, end, LINES: tl.constexpr, ELEMENTS: tl.constexpr):
    """Ask the L2 for LINES lines of 128 bytes from each of `tile`'s rows, up to element `end`."""
    offsets = tl.arange(0, LINES) * ELEMENTS
    offsets = tl.minimum(offsets, end - 1)
    address = (tile[:, None] + offsets[None, :]).to(tl.int64)
    tl.inline_asm_elementwise(
        "{ prefetch.global.L2 [$1]; mov.u32 $0, 0; }", "=r,l", [address],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@jit
def rows_of_tile(tile, outs, EPILOGUE: tl.constexpr, BLOCK_OUT: tl.constexpr):
    """int32 [BLOCK_OUT]: a tile's rows of the weight, gate and up by turns under "silu_mul".

    Past the end the last row is read again.
    """
    within = tl.arange(0, BLOCK_OUT)
    if EPILOGUE == "silu_mul":
        half = outs // 2
        one = tl.minimum(tile * (BLOCK_OUT // 2) + within // 2, half - 1)
        return one + (within % 2) * half
    else:
        return tl.minimum(tile * BLOCK_OUT + within, outs - 1)


@jit
def gelu(value):
    """As activation.gelu_kernel."""
    t = 0.7978845608028654 * (value + 0.044715 * value * value * value)
    return value / (1.0 + tl.exp(-2.0 * t))


def width_of(outs: int, epilogue: Epilogue) -> int:
    """Columns that a product with `outs` rows of weight gives."""
    return outs // 2 if epilogue == "silu_mul" else outs


@functools.cache
def counters_on(device: torch.device) -> Tensor:
    """int32 [COUNTERS], zero between launches. One product at a time uses them (one stream)."""
    assert device.type != "cuda" or not torch.cuda.is_current_stream_capturing()
    return torch.zeros(COUNTERS, dtype=torch.int32, device=device)
