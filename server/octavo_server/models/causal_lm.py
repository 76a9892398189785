"""What the engine asks of a model, and what a model's layers need of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from octavo_kernels.ops import AttentionBatch
from octavo_server.distributed.shard import Shard
from octavo_server.model_config import ModelConfig
from octavo_server.models.slot import Slot

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
    """One rank's part of a model, whose weights are filled through `slots` and then sealed with
    `prepare`.

    Its layers read and add to one residual stream, float32 whatever the model's dtype: in bfloat16
    it would be rounded twice a layer; kept wide, SmolLM2's logits are a third to a half closer to
    float32's.
    """

    config: ModelConfig  # this rank's: `shard.config`
    shard: Shard
    prefix: str  # what checkpoints of the whole model put before most tensor names

    def forward(self, batch: Batch) -> Tensor:
        """The residual stream after the last layer, float32 `[tokens, hidden]`, on every rank."""

    def logits(self, residual: Tensor) -> Tensor:
        """Final norm and head: float32 `[rows, hidden]` -> `[rows, vocab_size]`, the model's
        dtype.

        Of several ranks each has the `shard.width` ids from `shard.first_id` on: `[rows, width]`,
        -inf past the vocabulary.
        """

    def slots(self) -> dict[str, Slot]:
        """Checkpoint tensor (its name without `prefix`) -> the weights that it fills.

        The names and the tensors' shapes are the same on every rank.
        """

    def ignores(self, name: str) -> bool:
        """Whether a checkpoint may hold this tensor without the model needing it."""

    def prepare(self) -> None:
        """Turn filled weights into the layout that the device's `linear` likes; once."""
