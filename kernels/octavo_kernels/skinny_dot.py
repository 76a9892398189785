"""Products of up to 256 rows on tensor cores, the inputs split over programs that join in order.

The norm in front may be part of it (`Skinny.fused`): every program then repeats it for all rows,
which pays for few rows and few programs. Bias, activation and residual come at the end, on the
float32 sums.
"""

# Triton has no unpacking into a tuple.
# ruff: noqa: RUF005

from __future__ import annotations

import torch
from torch import Tensor

from .language import Variant, cdiv, gdc_launch_dependents, gdc_wait, jit, launch_options, tl
from .skinny_linear import (
    COUNTERS,
    Epilogue,
    Norm,
    Skinny,
    counters_on,
    gelu,
    prefetch,
    rows_of_tile,
    width_of,
)


@jit
def _moments(x_rows, ins, eps, NORM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """float32 [ROWS] each: mean (0 for rms_norm) and 1 / deviation.

    One pass: the variance is the mean square less the mean's, as the residual stream's mean is
    small beside its deviation.
    """
    total = tl.zeros([BLOCK, ROWS], tl.float32)
    squares = tl.zeros([BLOCK, ROWS], tl.float32)
    for begin in range(0, ins, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        v = tl.load(
            x_rows[None, :] + columns[:, None], mask=(columns < ins)[:, None], other=0.0
        ).to(tl.float32)
        total += v
        squares += v * v
    mean = tl.zeros([ROWS], tl.float32)
    if NORM == "layer_norm":
        mean = tl.sum(total, 0) / ins
    variance = tl.maximum(tl.sum(squares, 0) / ins - mean * mean, 0.0)
    return mean, 1.0 / tl.sqrt(variance + eps)


@jit
def _weights(starts, begin, last, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
             WAYS: tl.constexpr):  # fmt: skip
    """[BLOCK_OUT, BLOCK_IN]; more ways than one: [WAYS, BLOCK_OUT, BLOCK_IN / WAYS]."""
    if WAYS == 1:
        columns = begin + tl.arange(0, BLOCK_IN)
        return tl.load(
            starts[:, None] + columns[None, :], mask=(columns < last)[None, :], other=0.0
        )
    else:
        span: tl.constexpr = BLOCK_IN // WAYS
        way = begin + tl.arange(0, WAYS) * span
        columns = way[:, None, None] + tl.arange(0, span)[None, None, :]
        return tl.load(starts[None, :, None] + columns, mask=columns < last, other=0.0)


@jit
def _inputs(x_rows, begin, last, norm_weight, norm_bias, mean, scale, DTYPE: tl.constexpr,
            NORM: tl.constexpr, BLOCK_IN: tl.constexpr, WAYS: tl.constexpr):  # fmt: skip
    """[BLOCK_IN, ROWS] (more ways: [WAYS, BLOCK_IN / WAYS, ROWS]), normed, of DTYPE."""
    if WAYS == 1:
        columns = (begin + tl.arange(0, BLOCK_IN))[:, None]
        place = x_rows[None, :]
    else:
        span: tl.constexpr = BLOCK_IN // WAYS
        way = begin + tl.arange(0, WAYS) * span
        columns = way[:, None, None] + tl.arange(0, span)[None, :, None]
        place = x_rows[None, None, :]
    v = tl.load(place + columns, mask=columns < last, other=0.0)
    if NORM != "":
        factor = tl.load(norm_weight + columns, mask=columns < last, other=0.0).to(tl.float32)
        if WAYS == 1:
            v = (v - mean[None, :]) * scale[None, :] * factor
        else:
            v = (v - mean[None, None, :]) * scale[None, None, :] * factor
        if NORM == "layer_norm":
            v += tl.load(norm_bias + columns, mask=columns < last, other=0.0).to(tl.float32)
    return v.to(DTYPE)


@jit
def _finish(out, y, bias, taken, tile, row, outs, rows, stride_out: tl.int64,
            EPILOGUE: tl.constexpr, ADD: tl.constexpr, HAS_BIAS: tl.constexpr,
            BLOCK_OUT: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Bias, activation, residual, store of one tile's sums [BLOCK_OUT, ROWS]."""
    if HAS_BIAS:
        y += tl.load(bias + taken).to(tl.float32)[:, None]
    width: tl.constexpr = BLOCK_OUT // 2 if EPILOGUE == "silu_mul" else BLOCK_OUT
    limit = outs // 2 if EPILOGUE == "silu_mul" else outs
    here = tile * width + tl.arange(0, width)
    if EPILOGUE == "gelu":
        y = gelu(y)
    if EPILOGUE == "silu_mul":
        gate, up = tl.split(tl.permute(tl.reshape(y, [width, 2, ROWS]), (0, 2, 1)))
        y = gate / (1.0 + tl.exp(-gate)) * up
    mask = (here < limit)[:, None] & (row < rows)[None, :]
    place = out + row[None, :] * stride_out + here[:, None]
    if ADD:
        y += tl.load(place, mask=mask, other=0.0)
    tl.store(place, y.to(out.dtype.element_ty), mask=mask)


@jit
def dot_kernel(
    out,  # [rows, outs (silu_mul: outs / 2)], the weight's dtype; ADD: the float32 residual
    x,  # [rows, ins], the weight's dtype; with a norm: the float32 residual
    weight,  # [outs, ins], contiguous
    bias,  # [outs]; ignored unless HAS_BIAS
    norm_weight,  # [ins]; ignored without a norm
    norm_bias,  # [ins]; ignored unless "layer_norm"
    partials,  # float32 [SPLITS, tiles, BLOCK_OUT, ROWS]: scratch; ignored unless SPLITS > 1.
    # Tiles of outputs times tiles of rows.
    counters,  # int32 [tiles], zero before and after; likewise
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
    ROWS: tl.constexpr,  # of a tile: power of 2 >= 16
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    PREFETCH: tl.constexpr,  # tiles
    HELD: tl.constexpr,  # tiles
    MORE: tl.constexpr,  # whether a share has more tiles than those held
    WAYS: tl.constexpr,
    LINE: tl.constexpr,  # elements of the weight in 128 bytes
    PDL: tl.constexpr,
):
    """Program (tile of rows, tile of outputs, share of the inputs).

    Programs with the same part of the weight are neighbours: one reads it, the others find it in
    the L2.
    """
    tile = tl.program_id(1)
    split = tl.program_id(2)
    share = tl.cdiv(tl.cdiv(ins, BLOCK_IN), SPLITS) * BLOCK_IN
    first = split * share
    last = tl.minimum(first + share, ins)
    taken = rows_of_tile(tile, outs, EPILOGUE, BLOCK_OUT)
    starts = weight + taken.to(tl.int64) * ins
    dtype: tl.constexpr = weight.dtype.element_ty
    if PDL:
        gdc_launch_dependents()
    held = ()
    for i in tl.static_range(HELD):
        held = held + (_weights(starts, first + i * BLOCK_IN, last, BLOCK_OUT, BLOCK_IN, WAYS),)
    if PDL:
        if PREFETCH > 0:
            ahead = first + HELD * BLOCK_IN
            prefetch(starts + tl.minimum(ahead, ins - 1), ins, tl.maximum(last - ahead, 1),
                     PREFETCH * BLOCK_IN // LINE, LINE)  # fmt: skip
        gdc_wait()
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # NOTE: rows past the end read the first ones again, not all of them the last: those loads would
    # queue at one line of the L2 (96 rows took longer than 128).
    x_rows = x + (row % rows).to(tl.int64) * stride_x
    mean = tl.zeros([ROWS], tl.float32)
    scale = mean
    if NORM != "":
        mean, scale = _moments(x_rows, ins, eps, NORM, ROWS, 4096 // ROWS)
    if WAYS == 1:
        acc = tl.zeros([BLOCK_OUT, ROWS], tl.float32)
    else:
        acc = tl.zeros([WAYS, BLOCK_OUT, ROWS], tl.float32)
    for i in tl.static_range(HELD):
        v = _inputs(x_rows, first + i * BLOCK_IN, last, norm_weight, norm_bias, mean, scale,
                    dtype, NORM, BLOCK_IN, WAYS)  # fmt: skip
        acc = tl.dot(held[i], v, acc)
    if MORE:
        for begin in tl.range(first + HELD * BLOCK_IN, last, BLOCK_IN, num_stages=STAGES):
            w = _weights(starts, begin, last, BLOCK_OUT, BLOCK_IN, WAYS)
            v = _inputs(x_rows, begin, last, norm_weight, norm_bias, mean, scale,
                        dtype, NORM, BLOCK_IN, WAYS)  # fmt: skip
            acc = tl.dot(w, v, acc)
    if WAYS > 1:
        acc = tl.sum(acc, 0)
    if SPLITS == 1:
        _finish(out, acc, bias, taken, tile, row, outs, rows, stride_out,
                EPILOGUE, ADD, HAS_BIAS, BLOCK_OUT, ROWS)  # fmt: skip
    else:
        # The last program to arrive adds all shares, its own too, in their order: the sum does not
        # depend on who came last.
        tiles = tl.num_programs(0) * tl.num_programs(1)
        mine = tile * tl.num_programs(0) + tl.program_id(0)
        within = tl.arange(0, BLOCK_OUT)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
        size: tl.constexpr = BLOCK_OUT * ROWS
        tl.store(partials + (split * tiles + mine).to(tl.int64) * size + within, acc)
        tl.debug_barrier()  # every thread's part is written before one of them says so
        arrived = tl.atomic_add(counters + mine, 1, sem="acq_rel")
        if arrived == SPLITS - 1:
            total = tl.zeros([BLOCK_OUT, ROWS], tl.float32)
            for other in tl.static_range(SPLITS):  # unrolled: the loads do not wait for each other
                source = partials + (other * tiles + mine).to(tl.int64) * size
                total += tl.load(source + within, cache_modifier=".cg")
            tl.store(counters + mine, 0)
            _finish(out, total, bias, taken, tile, row, outs, rows, stride_out,
                    EPILOGUE, ADD, HAS_BIAS, BLOCK_OUT, ROWS)  # fmt: skip


def dot_linear(
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
    """`epilogue(linear(norm(x)))` for 1 to 256 rows; with `residual`: added to that."""
    rows, (outs, ins) = x.shape[0], weight.shape
    assert weight.is_contiguous()
    assert x.stride(1) == 1
    assert 1 <= rows <= 256
    out, width = residual, width_of(outs, epilogue)
    if out is None:
        out = torch.empty(rows, width, dtype=weight.dtype, device=x.device)
    padded = 16 if rows <= 16 else 32 if rows <= 32 else 64 if rows <= 64 else config.tile_rows
    row_tiles, tiles = cdiv(rows, padded), cdiv(outs, config.block_out)
    share = cdiv(cdiv(ins, config.block_in), config.splits)  # tiles
    partials = counters = out
    if config.splits > 1:
        counters = counters_on(x.device)
        assert row_tiles * tiles <= COUNTERS
        partials = torch.empty(
            config.splits, row_tiles * tiles, config.block_out * padded,
            dtype=torch.float32, device=x.device,
        )  # fmt: skip
    dot_kernel[(row_tiles, tiles, config.splits)](
        out, x, weight, weight if bias is None else bias,
        weight if norm_weight is None else norm_weight,
        weight if norm_bias is None else norm_bias,
        partials, counters, rows, outs, ins, eps, x.stride(0), out.stride(0),
        NORM=norm, EPILOGUE=epilogue, ADD=residual is not None, HAS_BIAS=bias is not None,
        ROWS=padded, BLOCK_OUT=config.block_out, BLOCK_IN=config.block_in, SPLITS=config.splits,
        STAGES=config.stages, PREFETCH=config.prefetch, HELD=min(config.held, share),
        MORE=share > config.held, WAYS=config.ways, LINE=128 // weight.element_size(),
        num_warps=config.warps, **launch_options(x.device.index),
    )  # fmt: skip
    return out


def variants() -> list[Variant]:
    found = []
    for dtype, norm, epilogue, add, rows, cut in (
        ("bf16", "", "", True, 16, (64, 128, 4, 0, True, 1)),
        ("fp16", "", "gelu", False, 64, (64, 128, 1, 0, True, 1)),
        ("bf16", "rms_norm", "silu_mul", False, 16, (64, 128, 1, 1, True, 1)),
        ("fp16", "layer_norm", "", False, 16, (32, 256, 1, 2, False, 1)),
        ("bf16", "", "silu_mul", False, 32, (16, 1024, 1, 1, False, 4)),
        ("fp16", "", "", True, 32, (16, 256, 4, 5, False, 4)),
        ("bf16", "", "silu_mul", False, 128, (128, 64, 1, 0, True, 1)),
    ):
        block_out, block_in, splits, held, more, ways = cut
        pointers = {
            "out": "*fp32" if add else f"*{dtype}", "x": "*fp32" if norm else f"*{dtype}",
            "partials": "*fp32", "counters": "*i32",
            **dict.fromkeys(("weight", "bias", "norm_weight", "norm_bias"), f"*{dtype}"),
        }  # fmt: skip
        sizes = {"outs": "i32", "ins": "i32", "stride_x": "i64", "stride_out": "i64"}
        found.append(
            Variant(
                name=f"skinny dot {dtype} {norm} {epilogue}{' +add' * add} rows {rows} splits "
                f"{splits} held {held} ways {ways}",
                kernel=dot_kernel,
                signature={**pointers, "rows": "i32", "eps": "fp32", **sizes},
                constants={
                    "NORM": norm, "EPILOGUE": epilogue, "ADD": add, "HAS_BIAS": not add,
                    "ROWS": rows, "BLOCK_OUT": block_out, "BLOCK_IN": block_in, "SPLITS": splits,
                    "STAGES": 4, "PREFETCH": 0 if held else 2, "HELD": held, "MORE": more,
                    "WAYS": ways, "LINE": 64, "PDL": False,
                },
                divisible=(*pointers, *sizes),
            )
        )  # fmt: skip
    return found
