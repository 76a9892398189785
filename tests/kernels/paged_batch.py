"""Random paged batches in which everything that attention must not read is NaN or nonsense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from octavo_kernels.ops import AttentionBatch, PagedAttention, PlanAttention

from . import oracle


@dataclass
class PagedBatch:
    query: Tensor  # [tokens, heads, head_size], a strided view of a fused qkv
    key_cache: Tensor  # [blocks, kv_heads, block_size, head_size]
    value_cache: Tensor
    block_tables: Tensor  # int32 [table_rows, max_blocks]
    rows: Tensor  # int32 [seqs]
    query_starts: Tensor  # int32 [seqs + 1]
    context_lens: Tensor  # int32 [seqs]
    max_query_len: int
    max_context_len: int
    window: int
    num_decodes: int
    planner: ClassVar[PlanAttention | None] = None

    def tensors(self) -> tuple[Tensor, ...]:
        return (
            self.query, self.key_cache, self.value_cache,
            self.block_tables, self.rows, self.query_starts, self.context_lens,
        )  # fmt: skip

    def bounds(self) -> tuple[int, int, int, int]:
        return self.max_query_len, self.max_context_len, self.window, self.num_decodes

    @property
    def scale(self) -> float:
        return float(self.query.shape[2] ** -0.5)

    def attend(self, op: PagedAttention, out: Tensor | None = None) -> Tensor:
        *_, block_tables, rows, query_starts, context_lens = self.tensors()
        batch = AttentionBatch(
            block_tables, rows, query_starts, context_lens,
            self.num_decodes, self.max_query_len, self.max_context_len,
        )  # fmt: skip
        if self.planner is not None:
            batch = self.planner(batch, heads=self.query.shape[1], key_cache=self.key_cache)
        return op(
            self.query, self.key_cache, self.value_cache, batch,
            scale=self.scale,
            sliding_window=self.window,
            out=out,
        )  # fmt: skip

    def expected(self) -> Tensor:
        query, keys, values, block_tables, rows, starts, contexts = self.tensors()
        return oracle.paged_attention(
            query,
            keys,
            values,
            block_tables[rows.long()],
            starts,
            contexts,
            self.scale,
            self.window,
        )


def make_batch(
    query_lens: list[int],
    contexts: list[int],
    *,
    heads: int,
    kv_heads: int,
    head_size: int,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    window: int = 0,
    padding_tokens: int = 0,
    seed: int = 0,
) -> PagedBatch:
    """Pages and rows in random order. NaN: pages of nobody, and slots past a context or before its
    window. Table entries past a context point nowhere, as do rows of nobody; those before the
    window to block 0, which is NaN."""
    random = torch.Generator().manual_seed(seed)
    used = [-(-context // block_size) for context in contexts]
    blocks = sum(used) + 2
    order = (torch.randperm(blocks - 1, generator=random) + 1).tolist()  # block 0 is nobody's
    shape = (blocks, kv_heads, block_size, head_size)
    keys, values = torch.full(shape, float("nan")), torch.full(shape, float("nan"))
    tables = torch.empty(len(contexts), max(used, default=0) + 2, dtype=torch.int32)
    tables[:, ::2], tables[:, 1::2] = -7, 1 << 30
    for seq, context in enumerate(contexts):
        first_query = context - query_lens[seq]
        lowest = max(0, first_query - window + 1) if window else 0
        for page in range(used[seq]):
            tables[seq, page] = order.pop() if (page + 1) * block_size > lowest else 0
        for position in range(lowest, context):
            block = tables[seq, position // block_size]
            offset = position % block_size
            keys[block, :, offset] = torch.randn(kv_heads, head_size, generator=random)
            values[block, :, offset] = torch.randn(kv_heads, head_size, generator=random)
    rows = torch.randperm(len(contexts) + 2, generator=random)[: len(contexts)]
    persistent = torch.full((len(contexts) + 2, tables.shape[1]), -7, dtype=torch.int32)
    persistent[rows] = tables
    tokens = sum(query_lens) + padding_tokens
    qkv = torch.randn(tokens, heads + 2 * kv_heads, head_size, generator=random)
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    return PagedBatch(
        qkv.to(device, dtype)[:, :heads],
        keys.to(device, dtype),
        values.to(device, dtype),
        persistent.to(device),
        rows.to(device, torch.int32),
        starts.to(device, torch.int32),
        torch.tensor(contexts, dtype=torch.int32, device=device),
        max(query_lens, default=0),
        max(contexts, default=0),
        window,
        max((seq + 1 for seq, length in enumerate(query_lens) if length == 1), default=0),
    )
