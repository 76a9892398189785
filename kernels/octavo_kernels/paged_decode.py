"""Split-KV decode ("flash-decoding", Dao et al. 2023): many programs share one sequence's keys.

Each program leaves an unnormalised float32 accumulator, a maximum and a sum; a second kernel joins
them. Used when a batch has too few programs to fill the device (`choose_splits`).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .language import TRITON_NAMES, Variant, jit, next_power_of_2, tl
from .online_softmax import attend, find_sequence
from .tiles import Tiles, attention_variants

# Above this many query tokens per sequence the unified kernel has programs enough (vLLM's bound).
MAX_QUERY_LEN = 8
# More parts than this cost more to join than they save (vLLM uses 16).
MAX_SPLITS = 16
# Keys that make a part worth its launch and its join.
MIN_KEYS = 128
# Programs per multiprocessor that keep its memory pipes busy.
PROGRAMS_PER_MULTIPROCESSOR = 2


@functools.cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def multiprocessors(device: torch.device) -> int:
    """Of a CUDA device; 1 elsewhere (the interpreter), where splitting is up to the caller."""
    if device.type != "cuda":
        return 1
    return _multiprocessors(torch.cuda.current_device() if device.index is None else device.index)


def choose_splits(
    seqs: int,
    kv_heads: int,
    max_query_len: int,
    max_context_len: int,
    sliding_window: int,
    multiprocessors: int,
) -> int:
    """Parts that each sequence's keys are cut into, a power of two; 1: do not split.

    Depends on bounds the host knows only, so that a captured graph fixes the path.
    """
    if max_query_len > MAX_QUERY_LEN:
        return 1
    span = max_context_len
    if sliding_window:
        span = min(span, sliding_window + max_query_len)
    wanted = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors // max(1, seqs * kv_heads)
    parts = min(wanted, span // MIN_KEYS, MAX_SPLITS)
    return 1 << (parts.bit_length() - 1) if parts > 1 else 1


@jit
def paged_decode_kernel(
    part_acc,  # float32 [tokens, heads, SPLITS, HEAD_PAD]
    part_max,  # float32 [tokens, heads, SPLITS], log2 units; -inf: no key seen
    part_sum,  # float32 [tokens, heads, SPLITS]
    query,  # [tokens, heads, HEAD_SIZE]
    key_cache,  # [blocks, kv_heads, BLOCK_SIZE, HEAD_SIZE]
    value_cache,
    block_tables,  # int32 [seqs, max_blocks]
    query_starts,  # int32 [seqs + 1]
    context_lens,  # int32 [seqs]
    seqs,
    scale_log2,
    window,
    stride_qt: tl.int64,
    stride_qh: tl.int64,
    stride_kb: tl.int64,
    stride_kh: tl.int64,
    stride_ks: tl.int64,
    stride_vb: tl.int64,
    stride_vh: tl.int64,
    stride_vs: tl.int64,
    stride_bt: tl.int64,
    BLOCK_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    FULL_PRECISION: tl.constexpr,
    SPLITS: tl.constexpr,
):
    index = tl.program_id(0)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    seq = find_sequence(query_starts, index, seqs, BLOCK_Q)
    query_begin = tl.load(query_starts + seq)
    query_len = tl.load(query_starts + seq + 1) - query_begin
    first = (index - (query_begin // BLOCK_Q + seq)) * BLOCK_Q
    if first >= query_len:
        return
    context_len = tl.load(context_lens + seq)
    before = context_len - query_len

    rows = tl.arange(0, BLOCK_M)
    tokens = first + rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    row_valid = (tokens < query_len) & (rows < BLOCK_Q * GROUP)
    query_positions = before + tokens
    dims = tl.arange(0, HEAD_PAD)
    token_rows = (query_begin + tokens).to(tl.int64)
    q = tl.load(
        query + (token_rows * stride_qt + heads * stride_qh)[:, None] + dims[None, :],
        mask=row_valid[:, None] & (dims < HEAD_SIZE)[None, :],
        other=0.0,
    )

    last = tl.minimum(before + first + BLOCK_Q, context_len)
    begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(before + first - window + 1, 0)
    # Parts are whole tiles; a short sequence leaves its later parts empty.
    part_keys = tl.cdiv(tl.cdiv(last - begin, SPLITS), TILE) * TILE
    key_begin = begin + part * part_keys
    key_end = tl.minimum(key_begin + part_keys, last)

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, HEAD_PAD], tl.float32)
    table = block_tables + seq * stride_bt
    m, total, acc = attend(
        q, m, total, acc, key_cache, value_cache, table, kv_head, key_begin, key_end,
        query_positions, row_valid, scale_log2, window,
        stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
        BLOCK_SIZE, HEAD_SIZE, HEAD_PAD, TILE, HAS_WINDOW, FULL_PRECISION,
    )  # fmt: skip
    total_heads = tl.num_programs(1) * GROUP
    part_rows = (token_rows * total_heads + heads) * SPLITS + part
    tl.store(part_max + part_rows, m, mask=row_valid)
    tl.store(part_sum + part_rows, total, mask=row_valid)
    tl.store(part_acc + part_rows[:, None] * HEAD_PAD + dims[None, :], acc, mask=row_valid[:, None])


@jit
def join_parts_kernel(
    out,  # [tokens, heads, HEAD_SIZE]
    part_acc,
    part_max,
    part_sum,
    query_starts,
    seqs,
    stride_ot: tl.int64,
    stride_oh: tl.int64,
    HEAD_SIZE: tl.constexpr,
    HEAD_PAD: tl.constexpr,
    SPLITS: tl.constexpr,
):
    token = tl.program_id(0)
    head = tl.program_id(1)
    if token >= tl.load(query_starts + seqs):  # padding: no part was written
        return
    row = token.to(tl.int64) * tl.num_programs(1) + head
    parts = tl.arange(0, SPLITS)
    dims = tl.arange(0, HEAD_PAD)
    m = tl.load(part_max + row * SPLITS + parts)
    sums = tl.load(part_sum + row * SPLITS + parts)
    highest = tl.max(m, 0)
    share = tl.exp2(m - tl.where(highest == float("-inf"), 0.0, highest))
    total = tl.sum(sums * share, 0)
    acc = tl.load(part_acc + (row * SPLITS + parts)[:, None] * HEAD_PAD + dims[None, :])
    result = tl.sum(acc * share[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(
        out + token.to(tl.int64) * stride_ot + head * stride_oh + dims,
        result.to(out.dtype.element_ty),
        mask=dims < HEAD_SIZE,
    )


def launch(
    out: Tensor,
    arguments: tuple[Any, ...],
    strides: tuple[int, ...],
    programs: int,
    kv_heads: int,
    splits: int,
    tiles: Tiles,
    sizes: dict[str, Any],
) -> None:
    """Both kernels; `arguments` and `strides` as the unified kernel takes them after `out`."""
    tokens, heads, head_size = out.shape
    pad = sizes["HEAD_PAD"]
    acc = torch.empty(tokens, heads, splits, pad, dtype=torch.float32, device=out.device)
    stats = torch.empty(2, tokens, heads, splits, dtype=torch.float32, device=out.device)
    paged_decode_kernel[(programs, kv_heads, splits)](
        acc, stats[0], stats[1], *arguments, *strides, **sizes, SPLITS=splits,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    query_starts, seqs = arguments[4], arguments[6]
    join_parts_kernel[(tokens, heads)](
        out, acc, stats[0], stats[1], query_starts, seqs, *out.stride()[:2],
        HEAD_SIZE=head_size, HEAD_PAD=pad, SPLITS=splits, num_warps=2,
    )  # fmt: skip


def variants() -> list[Variant]:
    parts = {"part_acc": "*fp32", "part_max": "*fp32", "part_sum": "*fp32"}
    found = attention_variants(
        "paged_decode", paged_decode_kernel, {"split": 1}, parts, SPLITS=MAX_SPLITS
    )
    for dtype in TRITON_NAMES.values():
        for head_size in (80, 256):
            found.append(
                Variant(
                    name=f"join_parts {dtype} head {head_size}",
                    kernel=join_parts_kernel,
                    signature={
                        "out": f"*{dtype}", **parts, "query_starts": "*i32", "seqs": "i32",
                        "stride_ot": "i64", "stride_oh": "i64",
                    },
                    constants={
                        "HEAD_SIZE": head_size, "HEAD_PAD": next_power_of_2(head_size),
                        "SPLITS": MAX_SPLITS,
                    },
                    divisible=("out", *parts, "query_starts", "stride_ot", "stride_oh"),
                    warps=2,
                )
            )  # fmt: skip
    return found
