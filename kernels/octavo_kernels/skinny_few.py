"""Products of 1 to 4 rows: multiply-adds on plain cores, in float32, one launch a product.

The norm in front is recomputed by every program (a row is small beside a weight); bias, activation
and residual come at the end, on the float32 sums.
"""

# Triton has no unpacking into a tuple.
# ruff: noqa: RUF005

from __future__ import annotations

import torch
from torch import Tensor

from .language import (
    Variant,
    cdiv,
    gdc_launch_dependents,
    gdc_wait,
    jit,
    launch_options,
    next_power_of_2,
    tl,
)
from .skinny_linear import Epilogue, Norm, Skinny, gelu, prefetch, rows_of_tile, width_of


@jit
def _moments(x, ins, eps, ROW: tl.constexpr):
    """Mean and 1 / deviation of one row, the variance from centred values."""
    columns = tl.arange(0, ROW)
    value = tl.load(x + columns, mask=columns < ins, other=0.0)
    mean = tl.sum(value, 0) / ins
    centred = tl.where(columns < ins, value - mean, 0.0)
    return mean, 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / ins + eps)


@jit
def _multiply(w, begin, x, norm_weight, norm_bias, ins, moments, sums, squares,
              NORM: tl.constexpr, ROWS: tl.constexpr, BLOCK_IN: tl.constexpr):  # fmt: skip
    """`sums` and `squares`, one of each a row, with a tile of the weight added."""
    columns = begin + tl.arange(0, BLOCK_IN)
    inside = columns < ins
    w = w.to(tl.float32)
    if NORM != "":
        factor = tl.load(norm_weight + columns, mask=inside, other=0.0).to(tl.float32)
    if NORM == "layer_norm":
        shift = tl.load(norm_bias + columns, mask=inside, other=0.0).to(tl.float32)
    new_sums = ()
    new_squares = ()
    for row in tl.static_range(ROWS):
        v = tl.load(x[row] + columns, mask=inside, other=0.0).to(tl.float32)
        if NORM == "rms_norm":
            new_squares = new_squares + (squares[row] + v * v,)
            v *= factor
        if NORM == "layer_norm":
            v = (v - moments[row][0]) * moments[row][1] * factor + shift
        new_sums = new_sums + (sums[row] + w * v[None, :],)
    return new_sums, new_squares


@jit
def few_rows_kernel(
    out,  # [rows, outs (silu_mul: outs / 2)], the weight's dtype; ADD: the float32 residual
    x,  # [rows, ins]; with a norm: the float32 residual
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
    NORM: tl.constexpr,
    EPILOGUE: tl.constexpr,
    ADD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,  # 1, 2 or 4, >= rows
    ROW: tl.constexpr,  # power of 2, >= ins
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    STAGES: tl.constexpr,
    PREFETCH: tl.constexpr,  # tiles
    HELD: tl.constexpr,  # tiles
    MORE: tl.constexpr,  # whether there are more tiles than those held
    LINE: tl.constexpr,  # elements of the weight in 128 bytes
    PDL: tl.constexpr,
):
    """Program: a tile of outputs of all rows. Lanes keep their own sums until the end.

    rms_norm's factor 1 / rms is one number a row: it is applied to the sums, so that the weights
    are read while the squares are still being added.
    """
    tile = tl.program_id(0)
    taken = rows_of_tile(tile, outs, EPILOGUE, BLOCK_OUT)
    starts = weight + taken.to(tl.int64) * ins
    if PDL:
        gdc_launch_dependents()
    held = ()
    for i in tl.static_range(HELD):
        columns = i * BLOCK_IN + tl.arange(0, BLOCK_IN)
        held = held + (
            tl.load(starts[:, None] + columns[None, :], mask=(columns < ins)[None, :], other=0.0),
        )
    if HAS_BIAS:
        shift = tl.load(bias + taken).to(tl.float32)
    if PDL:
        if PREFETCH > 0:
            ahead: tl.constexpr = HELD * BLOCK_IN
            prefetch(starts + tl.minimum(ahead, ins - 1), ins, tl.maximum(ins - ahead, 1),
                     PREFETCH * BLOCK_IN // LINE, LINE)  # fmt: skip
        gdc_wait()
    width: tl.constexpr = BLOCK_OUT // 2 if EPILOGUE == "silu_mul" else BLOCK_OUT
    limit = outs // 2 if EPILOGUE == "silu_mul" else outs
    here = tile * width + tl.arange(0, width)
    given = ()
    places = ()
    before = ()
    moments = ()
    sums = ()
    squares = ()
    for row in tl.static_range(ROWS):
        given = given + (x + tl.minimum(row, rows - 1) * stride_x,)
        places = places + (out + row * stride_out + here,)
        if ADD:  # asked for now: its way from memory overlaps the product
            mask = (here < limit) & (row < rows)
            before = before + (tl.load(places[row], mask=mask, other=0.0),)
        if NORM == "layer_norm":
            moments = moments + (_moments(given[row], ins, eps, ROW),)
        sums = sums + (tl.zeros([BLOCK_OUT, BLOCK_IN], tl.float32),)
        if NORM == "rms_norm":
            squares = squares + (tl.zeros([BLOCK_IN], tl.float32),)
    for i in tl.static_range(HELD):
        sums, squares = _multiply(held[i], i * BLOCK_IN, given, norm_weight, norm_bias, ins,
                                  moments, sums, squares, NORM, ROWS, BLOCK_IN)  # fmt: skip
    if MORE:
        for begin in tl.range(HELD * BLOCK_IN, ins, BLOCK_IN, num_stages=STAGES):
            columns = begin + tl.arange(0, BLOCK_IN)
            w = tl.load(
                starts[:, None] + columns[None, :], mask=(columns < ins)[None, :], other=0.0
            )
            sums, squares = _multiply(w, begin, given, norm_weight, norm_bias, ins, moments, sums,
                                      squares, NORM, ROWS, BLOCK_IN)  # fmt: skip
    for row in tl.static_range(ROWS):
        y = tl.sum(sums[row], 1)
        if NORM == "rms_norm":
            y *= 1.0 / tl.sqrt(tl.sum(squares[row], 0) / ins + eps)
        if HAS_BIAS:
            y += shift
        if EPILOGUE == "gelu":
            y = gelu(y)
        if EPILOGUE == "silu_mul":
            gate, up = tl.split(tl.reshape(y, [width, 2]))
            y = gate / (1.0 + tl.exp(-gate)) * up
        if ADD:
            y += before[row]
        mask = (here < limit) & (row < rows)
        tl.store(places[row], y.to(out.dtype.element_ty), mask=mask)


def few_rows_linear(
    config: Skinny,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm: Norm = "",
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 0.0,
    epilogue: Epilogue = "",
    residual: Tensor | None = None,
) -> Tensor:
    """`epilogue(linear(norm(x)))` for 1 to 4 rows; with `residual`: added to that."""
    rows, (outs, ins) = x.shape[0], weight.shape
    assert weight.is_contiguous()
    assert x.stride(1) == 1
    assert 1 <= rows <= 4
    out, width = residual, width_of(outs, epilogue)
    if out is None:
        out = torch.empty(rows, width, dtype=weight.dtype, device=x.device)
    few_rows_kernel[(cdiv(outs, config.block_out),)](
        out, x, weight, weight if bias is None else bias,
        weight if norm_weight is None else norm_weight,
        weight if norm_bias is None else norm_bias,
        rows, outs, ins, eps, x.stride(0), out.stride(0),
        NORM=norm, EPILOGUE=epilogue, ADD=residual is not None, HAS_BIAS=bias is not None,
        ROWS=4 if rows > 2 else rows, ROW=next_power_of_2(ins) if norm == "layer_norm" else 1,
        BLOCK_OUT=config.block_out, BLOCK_IN=config.block_in,
        STAGES=config.stages, PREFETCH=config.prefetch, HELD=config.held,
        MORE=ins > config.held * config.block_in, LINE=128 // weight.element_size(),
        num_warps=config.warps, **launch_options(x.device.index),
    )  # fmt: skip
    return out


def variants() -> list[Variant]:
    found = []
    for dtype, norm, epilogue, add, has_bias, rows, held in (
        ("bf16", "rms_norm", "silu_mul", False, False, 1, 0),
        ("bf16", "rms_norm", "", False, False, 4, 2),
        ("bf16", "", "", True, False, 2, 1),
        ("fp16", "layer_norm", "gelu", False, True, 1, 3),
        ("fp16", "", "", True, True, 4, 0),
    ):  # fmt: skip
        pointers = {
            "out": "*fp32" if add else f"*{dtype}",
            "x": "*fp32" if norm else f"*{dtype}",
            **dict.fromkeys(("weight", "bias", "norm_weight", "norm_bias"), f"*{dtype}"),
        }
        sizes = {"outs": "i32", "ins": "i32", "stride_x": "i64", "stride_out": "i64"}
        for pdl in (False, True):
            found.append(
                Variant(
                    name=f"few rows {dtype} {norm} {epilogue}{' +add' * add} rows {rows} held "
                    f"{held}{' pdl' * pdl}",
                    kernel=few_rows_kernel,
                    signature={**pointers, "rows": "i32", "eps": "fp32", **sizes},
                    constants={
                        "NORM": norm, "EPILOGUE": epilogue, "ADD": add, "HAS_BIAS": has_bias,
                        "ROWS": rows, "ROW": 2048, "BLOCK_OUT": 8, "BLOCK_IN": 512, "STAGES": 3,
                        "PREFETCH": 2, "HELD": held, "MORE": held != 3, "LINE": 64, "PDL": pdl,
                    },
                    divisible=(*pointers, *sizes),
                )
            )  # fmt: skip
    return found
