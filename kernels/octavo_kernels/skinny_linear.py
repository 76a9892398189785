"""Matrix multiply for few rows: the weight is streamed once, and what surrounds it is fused.

At 1 to 64 rows a product takes as long as reading its weight. Two kernels:

- `few_rows_kernel`, 1 to 4 rows: multiply-adds on plain cores, in float32. The norm in front of the
  product, or the activation, is recomputed by every program (a row is small beside a weight), and
  bias and residual are added at the end: one launch where there were three or four.
- `dot_kernel`, up to 64 rows: tensor cores, the inputs split over programs that join in a fixed
  order. Norm and activation stay launches of their own: every program would repeat them for all
  rows.

Both ask the L2 for their first tiles before they wait for the kernel in front of them. Which kernel
and which tiles a shape gets is measured: `skinny_table.py`.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .language import Variant, cdiv, gdc_launch_dependents, gdc_wait, jit, launch_options, tl

Prologue = Literal["", "rms_norm", "layer_norm", "silu_mul", "gelu"]

# Output tiles that a split product may have: a counter each. 8,192 tiles of 16 are 131,072 outputs,
# as many as any layer has; heads are not split.
_COUNTERS = 8192


class Skinny(NamedTuple):
    """How one product is cut; `kind` names the kernel."""

    kind: Literal["few", "dot"]
    block_out: int
    block_in: int
    warps: int
    stages: int  # tiles in flight
    splits: int  # programs that share an output tile; "few": 1
    prefetch: int  # tiles asked for before the wait


@jit
def _prefetch(tile, stride, end, LINES: tl.constexpr, ELEMENTS: tl.constexpr):
    """Ask the L2 for LINES lines of 128 bytes from each of `tile`'s rows, up to element `end`."""
    offsets = tl.arange(0, LINES) * ELEMENTS
    offsets = tl.minimum(offsets, end - 1)
    address = (tile[:, None] + offsets[None, :]).to(tl.int64)
    tl.inline_asm_elementwise(
        "{ prefetch.global.L2 [$1]; mov.u32 $0, 0; }", "=r,l", [address],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@jit
def _moments(x, ins, eps, BLOCK: tl.constexpr):
    """Mean and 1 / deviation of one row, the variance from centred values."""
    total = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, ins, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        total += tl.load(x + columns, mask=columns < ins, other=0.0).to(tl.float32)
    mean = tl.sum(total, 0) / ins
    squares = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, ins, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        value = tl.load(x + columns, mask=columns < ins, other=0.0).to(tl.float32)
        centred = tl.where(columns < ins, value - mean, 0.0)
        squares += centred * centred
    return mean, 1.0 / tl.sqrt(tl.sum(squares, 0) / ins + eps)


@jit
def _input(x, columns, inside, ins, PROLOGUE: tl.constexpr):
    """float32 values of one row at `columns`, the activation done."""
    value = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
    if PROLOGUE == "silu_mul":
        up = tl.load(x + ins + columns, mask=inside, other=0.0).to(tl.float32)
        value = (value / (1.0 + tl.exp(-value)) * up).to(x.dtype.element_ty).to(tl.float32)
    if PROLOGUE == "gelu":  # as activation.gelu_kernel
        t = 0.7978845608028654 * (value + 0.044715 * value * value * value)
        value = (value / (1.0 + tl.exp(-2.0 * t))).to(x.dtype.element_ty).to(tl.float32)
    return value


@jit
def _finish_row(out, acc, squares, bias, here, outs, ins, eps, row, rows, stride_out: tl.int64,
                PROLOGUE: tl.constexpr, ADD: tl.constexpr, HAS_BIAS: tl.constexpr):  # fmt: skip
    """Sum the lanes, scale, add bias and residual, store: one row of a program's outputs."""
    y = tl.sum(acc, 1)
    if PROLOGUE == "rms_norm":
        y *= 1.0 / tl.sqrt(tl.sum(squares, 0) / ins + eps)
    mask = (here < outs) & (row < rows)
    if HAS_BIAS:
        y += tl.load(bias + here, mask=here < outs, other=0.0).to(tl.float32)
    place = out + row * stride_out + here
    if ADD:
        y += tl.load(place, mask=mask, other=0.0)
    tl.store(place, y.to(out.dtype.element_ty), mask=mask)


@jit
def few_rows_kernel(
    out,  # [rows, outs], the weight's dtype; ADD: the float32 residual, added to in place
    x,  # [rows, ins]; "silu_mul": [rows, 2 * ins]; with a norm: the float32 residual
    weight,  # [outs, ins], contiguous
    bias,  # [outs]; ignored unless HAS_BIAS
    norm_weight,  # [ins]; ignored without a norm
    norm_bias,  # [ins]; ignored unless "layer_norm"
    rows,
    outs,
    ins,
    eps,
    stride_x: tl.int64,
    stride_out: tl.int64,
    PROLOGUE: tl.constexpr,
    ADD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,  # 1, 2 or 4, >= rows
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    STAGES: tl.constexpr,
    PREFETCH: tl.constexpr,  # tiles
    LINE: tl.constexpr,  # elements of the weight in 128 bytes
    PDL: tl.constexpr,
):
    """Program: BLOCK_OUT outputs of all rows. Lanes keep their own sums until the end.

    rms_norm's factor 1 / rms is one number a row: it is applied to the sums, so that the weights
    are read while the squares are still being added.
    """
    here = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    # Outputs past the end read the last row again.
    starts = weight + tl.minimum(here, outs - 1).to(tl.int64) * ins
    if PDL:
        if PREFETCH > 0:
            _prefetch(starts, ins, ins, PREFETCH * BLOCK_IN // LINE, LINE)
        gdc_launch_dependents()
        gdc_wait()
    x_0 = x
    x_1 = x + tl.minimum(1, rows - 1) * stride_x
    x_2 = x + tl.minimum(2, rows - 1) * stride_x
    x_3 = x + tl.minimum(3, rows - 1) * stride_x
    if PROLOGUE == "layer_norm":
        mean_0, scale_0 = _moments(x_0, ins, eps, BLOCK_IN)
        if ROWS > 1:
            mean_1, scale_1 = _moments(x_1, ins, eps, BLOCK_IN)
        if ROWS > 2:
            mean_2, scale_2 = _moments(x_2, ins, eps, BLOCK_IN)
            mean_3, scale_3 = _moments(x_3, ins, eps, BLOCK_IN)
    acc_0 = tl.zeros([BLOCK_OUT, BLOCK_IN], tl.float32)
    squares_0 = tl.zeros([BLOCK_IN], tl.float32)
    if ROWS > 1:
        acc_1 = tl.zeros([BLOCK_OUT, BLOCK_IN], tl.float32)
        squares_1 = tl.zeros([BLOCK_IN], tl.float32)
    if ROWS > 2:
        acc_2 = tl.zeros([BLOCK_OUT, BLOCK_IN], tl.float32)
        squares_2 = tl.zeros([BLOCK_IN], tl.float32)
        acc_3 = tl.zeros([BLOCK_OUT, BLOCK_IN], tl.float32)
        squares_3 = tl.zeros([BLOCK_IN], tl.float32)
    for begin in tl.range(0, ins, BLOCK_IN, num_stages=STAGES):
        columns = begin + tl.arange(0, BLOCK_IN)
        inside = columns < ins
        w = tl.load(starts[:, None] + columns[None, :], mask=inside[None, :], other=0.0)
        w = w.to(tl.float32)
        if PROLOGUE == "rms_norm":
            factor = tl.load(norm_weight + columns, mask=inside, other=0.0).to(tl.float32)
        if PROLOGUE == "layer_norm":
            factor = tl.load(norm_weight + columns, mask=inside, other=0.0).to(tl.float32)
            shift = tl.load(norm_bias + columns, mask=inside, other=0.0).to(tl.float32)
        v = _input(x_0, columns, inside, ins, PROLOGUE)
        if PROLOGUE == "rms_norm":
            squares_0 += v * v
            v *= factor
        if PROLOGUE == "layer_norm":
            v = (v - mean_0) * scale_0 * factor + shift
        acc_0 += w * v[None, :]
        if ROWS > 1:
            v = _input(x_1, columns, inside, ins, PROLOGUE)
            if PROLOGUE == "rms_norm":
                squares_1 += v * v
                v *= factor
            if PROLOGUE == "layer_norm":
                v = (v - mean_1) * scale_1 * factor + shift
            acc_1 += w * v[None, :]
        if ROWS > 2:
            v = _input(x_2, columns, inside, ins, PROLOGUE)
            if PROLOGUE == "rms_norm":
                squares_2 += v * v
                v *= factor
            if PROLOGUE == "layer_norm":
                v = (v - mean_2) * scale_2 * factor + shift
            acc_2 += w * v[None, :]
            v = _input(x_3, columns, inside, ins, PROLOGUE)
            if PROLOGUE == "rms_norm":
                squares_3 += v * v
                v *= factor
            if PROLOGUE == "layer_norm":
                v = (v - mean_3) * scale_3 * factor + shift
            acc_3 += w * v[None, :]
    _finish_row(out, acc_0, squares_0, bias, here, outs, ins, eps, 0, rows, stride_out,
                PROLOGUE, ADD, HAS_BIAS)  # fmt: skip
    if ROWS > 1:
        _finish_row(out, acc_1, squares_1, bias, here, outs, ins, eps, 1, rows, stride_out,
                    PROLOGUE, ADD, HAS_BIAS)  # fmt: skip
    if ROWS > 2:
        _finish_row(out, acc_2, squares_2, bias, here, outs, ins, eps, 2, rows, stride_out,
                    PROLOGUE, ADD, HAS_BIAS)  # fmt: skip
        _finish_row(out, acc_3, squares_3, bias, here, outs, ins, eps, 3, rows, stride_out,
                    PROLOGUE, ADD, HAS_BIAS)  # fmt: skip


@jit
def _finish_tile(out, y, bias, here, row, outs, rows, stride_out: tl.int64,
                 ADD: tl.constexpr, HAS_BIAS: tl.constexpr):  # fmt: skip
    mask = (here < outs)[:, None] & (row < rows)[None, :]
    if HAS_BIAS:
        y += tl.load(bias + here, mask=here < outs, other=0.0).to(tl.float32)[:, None]
    place = out + row[None, :] * stride_out + here[:, None]
    if ADD:
        y += tl.load(place, mask=mask, other=0.0)
    tl.store(place, y.to(out.dtype.element_ty), mask=mask)


@jit
def dot_kernel(
    out,  # [rows, outs], the weight's dtype; ADD: the float32 residual, added to in place
    x,  # [rows, ins], the weight's dtype
    weight,  # [outs, ins], contiguous
    bias,  # [outs]; ignored unless HAS_BIAS
    partials,  # float32 [SPLITS, tiles, BLOCK_OUT, ROWS]: scratch; ignored unless SPLITS > 1
    counters,  # int32 [tiles], zero before and after; likewise
    rows,
    outs,
    ins,
    stride_x: tl.int64,
    stride_out: tl.int64,
    ADD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,  # power of 2 >= 16, >= rows
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    PREFETCH: tl.constexpr,
    LINE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (tile of outputs, share of the inputs)."""
    tile = tl.program_id(0)
    split = tl.program_id(1)
    share = tl.cdiv(tl.cdiv(ins, BLOCK_IN), SPLITS) * BLOCK_IN
    first = split * share
    last = tl.minimum(first + share, ins)
    here = tile * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    starts = weight + tl.minimum(here, outs - 1).to(tl.int64) * ins
    if PDL:
        if PREFETCH > 0:
            _prefetch(starts + tl.minimum(first, ins - 1), ins, tl.maximum(last - first, 1),
                      PREFETCH * BLOCK_IN // LINE, LINE)  # fmt: skip
        gdc_launch_dependents()
        gdc_wait()
    row = tl.arange(0, ROWS)
    x_rows = x + tl.minimum(row, rows - 1).to(tl.int64) * stride_x
    acc = tl.zeros([BLOCK_OUT, ROWS], tl.float32)
    for begin in tl.range(first, last, BLOCK_IN, num_stages=STAGES):
        columns = begin + tl.arange(0, BLOCK_IN)
        inside = columns < last
        w = tl.load(starts[:, None] + columns[None, :], mask=inside[None, :], other=0.0)
        v = tl.load(x_rows[None, :] + columns[:, None], mask=inside[:, None], other=0.0)
        acc = tl.dot(w, v, acc)
    if SPLITS == 1:
        _finish_tile(out, acc, bias, here, row, outs, rows, stride_out, ADD, HAS_BIAS)
    else:
        # The last program to arrive adds all shares, its own too, in their order: the sum does not
        # depend on who came last.
        tiles = tl.num_programs(0)
        within = tl.arange(0, BLOCK_OUT)[:, None] * ROWS + row[None, :]
        size: tl.constexpr = BLOCK_OUT * ROWS
        tl.store(partials + (split * tiles + tile).to(tl.int64) * size + within, acc)
        tl.debug_barrier()  # every thread's part is written before one of them says so
        arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel")
        if arrived == SPLITS - 1:
            total = tl.zeros([BLOCK_OUT, ROWS], tl.float32)
            for other in range(SPLITS):
                source = partials + (other * tiles + tile).to(tl.int64) * size
                total += tl.load(source + within, cache_modifier=".cg")
            tl.store(counters + tile, 0)
            _finish_tile(out, total, bias, here, row, outs, rows, stride_out, ADD, HAS_BIAS)


@functools.cache
def counters_on(device: torch.device) -> Tensor:
    """int32 [_COUNTERS], zero between launches. One product at a time uses them (one stream)."""
    assert device.type != "cuda" or not torch.cuda.is_current_stream_capturing()
    return torch.zeros(_COUNTERS, dtype=torch.int32, device=device)


def few_rows_linear(
    config: Skinny,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    prologue: Prologue = "",
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 0.0,
    residual: Tensor | None = None,
) -> Tensor:
    """`linear(prologue(x))` for 1 to 4 rows, `[rows, outs]`; with `residual`: added to that."""
    rows, (outs, ins) = x.shape[0], weight.shape
    assert weight.is_contiguous()
    assert x.stride(1) == 1
    assert 1 <= rows <= 4
    out = residual
    if out is None:
        out = torch.empty(rows, outs, dtype=weight.dtype, device=x.device)
    few_rows_kernel[(cdiv(outs, config.block_out),)](
        out, x, weight, weight if bias is None else bias,
        weight if norm_weight is None else norm_weight,
        weight if norm_bias is None else norm_bias,
        rows, outs, ins, eps, x.stride(0), out.stride(0),
        PROLOGUE=prologue, ADD=residual is not None, HAS_BIAS=bias is not None,
        ROWS=4 if rows > 2 else rows, BLOCK_OUT=config.block_out, BLOCK_IN=config.block_in,
        STAGES=config.stages, PREFETCH=config.prefetch, LINE=128 // weight.element_size(),
        num_warps=config.warps, **launch_options(x.device.index),
    )  # fmt: skip
    return out


def dot_linear(
    config: Skinny, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None
) -> Tensor:
    """`linear(x)` for 1 to 64 rows, `[rows, outs]`; with `residual`: added to that."""
    rows, (outs, ins) = x.shape[0], weight.shape
    assert weight.is_contiguous()
    assert x.stride(1) == 1
    assert 1 <= rows <= 64
    out = residual
    if out is None:
        out = torch.empty(rows, outs, dtype=weight.dtype, device=x.device)
    padded = 16 if rows <= 16 else 32 if rows <= 32 else 64
    tiles = cdiv(outs, config.block_out)
    partials = counters = out
    if config.splits > 1:
        counters = counters_on(x.device)
        assert tiles <= _COUNTERS
        partials = torch.empty(
            config.splits, tiles, config.block_out * padded, dtype=torch.float32, device=x.device
        )
    dot_kernel[(tiles, config.splits)](
        out, x, weight, weight if bias is None else bias, partials, counters,
        rows, outs, ins, x.stride(0), out.stride(0),
        ADD=residual is not None, HAS_BIAS=bias is not None, ROWS=padded,
        BLOCK_OUT=config.block_out, BLOCK_IN=config.block_in, SPLITS=config.splits,
        STAGES=config.stages, PREFETCH=config.prefetch, LINE=128 // weight.element_size(),
        num_warps=config.warps, **launch_options(x.device.index),
    )  # fmt: skip
    return out


def variants() -> list[Variant]:
    found = []
    for dtype, prologue, add, has_bias, rows in (
        ("bf16", "rms_norm", False, False, 1), ("bf16", "silu_mul", True, False, 4),
        ("bf16", "", True, False, 2), ("fp16", "layer_norm", False, True, 1),
        ("fp16", "gelu", True, True, 4),
    ):  # fmt: skip
        pointers = {
            "out": "*fp32" if add else f"*{dtype}",
            "x": "*fp32" if "norm" in prologue else f"*{dtype}",
            **dict.fromkeys(("weight", "bias", "norm_weight", "norm_bias"), f"*{dtype}"),
        }
        sizes = {"outs": "i32", "ins": "i32", "stride_x": "i64", "stride_out": "i64"}
        for pdl in (False, True):
            found.append(
                Variant(
                    name=f"few rows {dtype} {prologue}{' +add' * add} rows {rows}{' pdl' * pdl}",
                    kernel=few_rows_kernel,
                    signature={**pointers, "rows": "i32", "eps": "fp32", **sizes},
                    constants={
                        "PROLOGUE": prologue, "ADD": add, "HAS_BIAS": has_bias, "ROWS": rows,
                        "BLOCK_OUT": 8, "BLOCK_IN": 512, "STAGES": 3, "PREFETCH": 2, "LINE": 64,
                        "PDL": pdl,
                    },
                    divisible=(*pointers, *sizes),
                )
            )  # fmt: skip
    for dtype, add, rows, splits in (("bf16", True, 16, 4), ("fp16", False, 64, 1)):
        pointers = {
            "out": "*fp32" if add else f"*{dtype}", "partials": "*fp32", "counters": "*i32",
            **dict.fromkeys(("x", "weight", "bias"), f"*{dtype}"),
        }  # fmt: skip
        sizes = {"outs": "i32", "ins": "i32", "stride_x": "i64", "stride_out": "i64"}
        found.append(
            Variant(
                name=f"skinny dot {dtype}{' +add' * add} rows {rows} splits {splits}",
                kernel=dot_kernel,
                signature={**pointers, "rows": "i32", **sizes},
                constants={
                    "ADD": add, "HAS_BIAS": not add, "ROWS": rows, "BLOCK_OUT": 64,
                    "BLOCK_IN": 128, "SPLITS": splits, "STAGES": 4, "PREFETCH": 2, "LINE": 64,
                    "PDL": False,
                },
                divisible=(*pointers, *sizes),
            )
        )  # fmt: skip
    return found
