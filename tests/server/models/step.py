"""Hand-made batches: what the engine's runner would pass to a model."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo_kernels.ops import AttentionBatch
from octavo_server.model_config import ModelConfig
from octavo_server.models.causal_lm import Batch, CausalLM

BLOCK_SIZE = 8


@dataclass
class Rows:
    """Sequences that grow step by step; their pages are interleaved and full of NaN before use."""

    model: CausalLM
    count: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    max_blocks: int = 32
    lengths: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        config: ModelConfig = self.model.config
        self.lengths = [0] * self.count
        shape = (
            1 + self.count * self.max_blocks, config.num_kv_heads, BLOCK_SIZE, config.head_size,
        )  # fmt: skip
        self.caches = [
            (self.poisoned(shape), self.poisoned(shape)) for _ in range(config.num_layers)
        ]
        # Block 0 is the null block; row r owns blocks 1 + r, 1 + r + count, ...
        owned = torch.arange(self.count * self.max_blocks).view(self.max_blocks, self.count).T + 1
        self.tables = owned.to(self.device, torch.int32).contiguous()

    def step(self, chunks: list[list[int]]) -> list[Tensor]:
        """Run each row's next tokens (none is legal); float32 logits `[tokens, vocab]` a row."""
        ids, positions, slots, starts = [], [], [], [0]
        for row, chunk in enumerate(chunks):
            for token in chunk:
                position = self.lengths[row]
                block = int(self.tables[row, position // BLOCK_SIZE])
                ids.append(token)
                positions.append(position)
                slots.append(block * BLOCK_SIZE + position % BLOCK_SIZE)
                self.lengths[row] += 1
            starts.append(len(ids))
        attention = AttentionBatch(
            block_tables=self.tables,
            rows=self.tensor(list(range(self.count)), torch.int32),
            query_starts=self.tensor(starts, torch.int32),
            context_lens=self.tensor(self.lengths, torch.int32),
            num_decodes=self.count,
            max_query_len=max(len(chunk) for chunk in chunks),
            max_context_len=max(self.lengths),
        )
        batch = Batch(
            token_ids=self.tensor(ids, torch.int64),
            positions=self.tensor(positions, torch.int64),
            slots=self.tensor(slots, torch.int64),
            attention=attention,
            kv_caches=self.caches,
        )
        with torch.inference_mode():
            logits = self.model.logits(self.model.forward(batch)).float()
        return list(logits.cpu().split([len(chunk) for chunk in chunks]))

    def tensor(self, values: list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)

    def poisoned(self, shape: tuple[int, ...]) -> Tensor:
        return torch.full(shape, float("nan"), dtype=self.dtype, device=self.device)
