"""What the engine asks of a model, and what a model's layers need of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from octavo_kernels.ops import ActivationName, AttentionBatch, Ops
from octavo_server.model_config import ModelConfig

MLP_TOKENS = 4096
"""At a time: the widest activations of a step of 8,192 tokens (0.7 GiB of llama-8b) are halved, and
a product of 4,096 rows is as fast a row as one of 8,192.
"""


@dataclass(slots=True)
class Batch:
    """One step's tokens; tensors on the model's device."""

    token_ids: Tensor  # int64 [tokens]
    positions: Tensor  # int64 [tokens]
    slots: Tensor  # int64 [tokens], where each token's key and value go; -1 = nowhere
    attention: AttentionBatch
    kv_caches: list[tuple[Tensor, Tensor]]  # a layer: two [blocks, kv_heads, block_size, head_size]


class CausalLM(Protocol):
    """A model whose weights are filled through `slots` and then sealed with `prepare`.

    Its layers read and add to one residual stream, float32 whatever the model's dtype: in bfloat16
    it would be rounded twice a layer; kept wide, SmolLM2's logits are a third to a half closer to
    float32's.
    """

    config: ModelConfig
    prefix: str  # what checkpoints of the whole model put before most tensor names

    def forward(self, batch: Batch) -> Tensor:
        """The residual stream after the last layer, float32 `[tokens, hidden]`."""

    def logits(self, residual: Tensor) -> Tensor:
        """Final norm and head: float32 `[rows, hidden]` -> `[rows, vocab_size]`, the model's
        dtype.
        """

    def slots(self) -> dict[str, Tensor]:
        """Checkpoint tensor (its name without `prefix`) -> the view of a weight that it fills."""

    def ignores(self, name: str) -> bool:
        """Whether a checkpoint may hold this tensor without the model needing it."""

    def prepare(self) -> None:
        """Turn filled weights into the layout that the device's `linear` likes; once."""


class Norm:
    """RMSNorm, or LayerNorm where it has a bias; always computed together with what reads it."""

    def __init__(
        self, size: int, eps: float, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.eps = eps
        self.weight = torch.empty(size, dtype=dtype, device=device)
        self.bias = torch.empty(size, dtype=dtype, device=device) if bias else None


class Linear:
    """`x @ weight.T + bias`; the weight is opaque after `prepare`."""

    def __init__(
        self, ops: Ops, outs: int, ins: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.ops = ops
        self.weight = torch.empty(outs, ins, dtype=dtype, device=device)
        self.bias = torch.empty(outs, dtype=dtype, device=device) if bias else None

    def of_norm(
        self, residual: Tensor, norm: Norm, activation: ActivationName | None = None
    ) -> Tensor:
        """`activation(linear(norm(residual)))`, `[tokens, outs]` ("silu_mul": half of them)."""
        return self.ops.norm_linear(
            residual, norm.weight, norm.bias, norm.eps, self.weight, self.bias, activation
        )

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        """`residual += linear(x)`, in place."""
        self.ops.linear_add(x, self.weight, self.bias, residual)

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


_HEAD_ROWS = 64
"""The head has a multiple of so many rows: cuBLAS takes 238 us instead of 45 for 50 x 1280 by
50,257 (GPT-2), whose rows of logits are not aligned (H100).
"""


class Embedding:
    """The token table, and the head where they are tied."""

    def __init__(
        self, ops: Ops, rows: int, hidden: int, tied: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.ops, self.rows = ops, rows
        padded = -(-rows // _HEAD_ROWS) * _HEAD_ROWS
        self._head = torch.empty(padded, hidden, dtype=dtype, device=device)
        self._head[rows:].zero_()
        # Views of the weights that checkpoints fill.
        self.head = self._head[:rows]
        self.table = self.head if tied else torch.empty_like(self.head)

    def __call__(
        self, token_ids: Tensor, positions: Tensor, position_table: Tensor | None = None
    ) -> Tensor:
        return self.ops.embed(token_ids, self.table, positions, position_table)

    def logits(self, residual: Tensor, norm: Norm) -> Tensor:
        logits = self.ops.norm_linear(residual, norm.weight, norm.bias, norm.eps, self._head)
        return logits[:, : self.rows]

    def prepare(self) -> None:
        # The table stays plain for look-ups: a tied head is a copy where the layout differs.
        self._head = self.ops.prepare_linear(self._head)
        del self.head
