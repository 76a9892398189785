"""The residual stream's start: token rows, and position rows where a model learned them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .language import (
    Variant,
    cdiv,
    gdc_launch_dependents,
    gdc_wait,
    jit,
    launch_options,
    tl,
)

# Columns a program: 8 elements a thread over 4 warps, one 16-byte load in bf16.
_BLOCK = 1024


@jit
def embed_kernel(
    out,  # float32 [tokens, width]
    token_ids,  # int64 [tokens]
    table,  # [vocab, width]
    positions,  # int64 [tokens]; ignored unless HAS_POSITIONS
    position_table,  # [max_positions, width]; likewise
    width,
    HAS_POSITIONS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Program (token, block of columns)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    source = table + tl.load(token_ids + token) * width
    y = tl.load(source + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_POSITIONS:
        source = position_table + tl.load(positions + token) * width
        y += tl.load(source + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + token * width + columns, y, mask=mask)


def embed_triton(
    token_ids: Tensor, table: Tensor, positions: Tensor, position_table: Tensor | None
) -> Tensor:
    tokens, width = token_ids.shape[0], table.shape[1]
    out = torch.empty(tokens, width, dtype=torch.float32, device=table.device)
    if tokens:
        assert table.is_contiguous()
        assert position_table is None or position_table.is_contiguous()
        embed_kernel[(tokens, cdiv(width, _BLOCK))](
            out, token_ids, table, positions, table if position_table is None else position_table,
            width, HAS_POSITIONS=position_table is not None, BLOCK=_BLOCK,
            **launch_options(table.device.index),
        )  # fmt: skip
    return out


def variants() -> list[Variant]:
    return [
        Variant(
            name=f"embed {dtype}{' +positions' * has_positions}",
            kernel=embed_kernel,
            signature={
                "out": "*fp32", "token_ids": "*i64", "table": f"*{dtype}", "positions": "*i64",
                "position_table": f"*{dtype}", "width": "i32",
            },
            constants={"HAS_POSITIONS": has_positions, "BLOCK": _BLOCK, "PDL": False},
            divisible=("out", "table", "position_table", "width"),
        )
        for dtype, has_positions in (("bf16", False), ("fp16", True), ("fp32", True))
    ]  # fmt: skip


def embed_torch(
    token_ids: Tensor, table: Tensor, positions: Tensor, position_table: Tensor | None
) -> Tensor:
    residual = F.embedding(token_ids, table).float()
    if position_table is not None:
        residual += F.embedding(positions, position_table)
    return residual
