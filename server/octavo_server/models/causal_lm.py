"""What the engine asks of a model, and what a model's layers need of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo_kernels.ops import Ops
from octavo_server.model_config import ModelConfig


@dataclass(slots=True)
class Batch:
    """One step's rows as attention sees them; tensors on the model's device."""

    slots: Tensor  # int64 [tokens], where each token's key and value go; -1 = nowhere
    block_tables: Tensor  # int32 [rows, max_blocks]
    query_starts: Tensor  # int32 [rows + 1], cumulative
    context_lens: Tensor  # int32 [rows], tokens of the row including this step's
    max_query_len: int
    max_context_len: int
    kv_caches: list[tuple[Tensor, Tensor]]  # a layer: two [blocks, kv_heads, block_size, head_size]


class CausalLM(Protocol):
    """A model whose weights are filled through `slots` and then sealed with `prepare`."""

    config: ModelConfig
    prefix: str  # what checkpoints of the whole model put before most tensor names

    def forward(self, token_ids: Tensor, positions: Tensor, batch: Batch) -> Tensor:
        """int64 `[tokens]`, int64 `[tokens]` -> hidden `[tokens, hidden]`, final norm applied."""

    def logits(self, hidden: Tensor) -> Tensor:
        """`[rows, hidden]` -> float32 `[rows, vocab_size]`."""

    def slots(self) -> dict[str, Tensor]:
        """Checkpoint tensor (its name without `prefix`) -> the view of a weight that it fills."""

    def ignores(self, name: str) -> bool:
        """Whether a checkpoint may hold this tensor without the model needing it."""

    def prepare(self) -> None:
        """Turn filled weights into the layout that the device's `linear` likes; once."""


def new_residual(x: Tensor) -> Tensor:
    """The residual stream, empty: float32 whatever the model's dtype.

    In bfloat16 it would be rounded twice a layer; kept wide, SmolLM2's logits are a third to a half
    closer to float32's, for a few more bytes in each norm.
    """
    return torch.zeros(x.shape, dtype=torch.float32, device=x.device)


class Linear:
    """`x @ weight.T + bias`; the weight is opaque after `prepare`."""

    def __init__(
        self, ops: Ops, outs: int, ins: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.ops = ops
        self.weight = torch.empty(outs, ins, dtype=dtype, device=device)
        self.bias = torch.empty(outs, dtype=dtype, device=device) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.weight, self.bias)

    def prepare(self) -> None:
        self.weight = self.ops.prepare_linear(self.weight)

    def slots(self, **parts: int) -> dict[str, Tensor]:
        """`NAME.weight` and `NAME.bias` -> the rows of each part, which lie in this order."""
        sizes = list(parts.values())
        found = dict(
            zip((f"{name}.weight" for name in parts), self.weight.split(sizes), strict=True)
        )
        if self.bias is not None:
            names = (f"{name}.bias" for name in parts)
            found |= dict(zip(names, self.bias.split(sizes), strict=True))
        return found


class Embedding:
    """The token table, and the head where they are tied."""

    def __init__(
        self, ops: Ops, rows: int, hidden: int, tied: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.ops = ops
        self.table = torch.empty(rows, hidden, dtype=dtype, device=device)
        self.head = self.table if tied else torch.empty_like(self.table)

    def __call__(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self.table)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.ops.linear(hidden, self.head).float()

    def prepare(self) -> None:
        # The table stays plain for look-ups: a tied head is a copy where the layout differs.
        self.head = self.ops.prepare_linear(self.head)
