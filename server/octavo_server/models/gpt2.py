"""GPT-2: learned positions, LayerNorm with biases, weights stored transposed (`[in, out]`)."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from octavo_kernels.ops import Ops
from octavo_server.distributed.group import SOLO, Group
from octavo_server.distributed.shard import shard
from octavo_server.model_config import ModelConfig
from octavo_server.models.causal_lm import MLP_TOKENS, Batch
from octavo_server.models.layers import (
    Embedding,
    Linear,
    Makings,
    Norm,
    NormedLinear,
    ResidualLinear,
)
from octavo_server.models.slab import Slab
from octavo_server.models.slot import Piece, Slot, whole

# Causal masks that old checkpoints carry as buffers.
_MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


class Layer:
    def __init__(self, makings: Makings, layer: int) -> None:
        share, config = makings.shard, makings.shard.config
        self.ops, self.layer, self.solo = makings.ops, layer, makings.group.size == 1
        self.heads, self.head_size = config.num_heads, config.head_size
        self.ln_1 = Norm(makings, bias=True)
        parts = {"query": share.query, "key": share.key_value, "value": share.key_value}
        self.qkv = NormedLinear(makings, parts, bias=True)
        self.output = ResidualLinear(makings, share.query, bias=True)
        self.ln_2 = Norm(makings, bias=True)
        self.up = NormedLinear(makings, {"mlp.c_fc": share.inner}, bias=True)
        self.down = ResidualLinear(makings, share.inner, bias=True)

    def __call__(self, residual: Tensor, batch: Batch) -> None:
        self._attend(residual, batch)
        for part in residual.split(MLP_TOKENS):
            self.down.add_to(part, self.up.of_norm(part, self.ln_2, "gelu"))

    def _attend(self, residual: Tensor, batch: Batch) -> None:
        """A call of its own, so that its activations are gone before the widest ones come."""
        qkv = self.qkv.of_norm(residual, self.ln_1).view(-1, 3, self.heads, self.head_size)
        query, key, value = qkv.unbind(1)
        key_cache, value_cache = batch.kv_caches[self.layer]
        self.ops.cache_write(key, value, key_cache, value_cache, batch.slots)
        seen = self.ops.paged_attention(
            query, key_cache, value_cache, batch.attention, scale=self.head_size**-0.5
        )
        self.output.add_to(residual, seen.view(len(seen), -1))

    def slots(self) -> dict[str, Slot]:
        found = self.ln_1.slots("ln_1") | self.ln_2.slots("ln_2")
        if self.solo:  # each in one piece, which is read faster than three side by side
            assert self.qkv.bias is not None
            products = {
                "attn.c_attn.weight": whole(self.qkv.weight),
                "attn.c_attn.bias": whole(self.qkv.bias),
            }
        else:
            products = _side_by_side(self.qkv.slots(), "attn.c_attn")
        products |= self.output.slots("attn.c_proj")
        products |= self.up.slots() | self.down.slots("mlp.c_proj")
        return found | {name: _turned(slot) for name, slot in products.items()}

    def linears(self) -> list[Linear]:
        return [self.qkv, self.output, self.up, self.down]


def _side_by_side(parts: dict[str, Slot], name: str) -> dict[str, Slot]:
    """The slots of several tensors as those of one that holds their rows one after another."""
    found = {}
    for kind in ("weight", "bias"):
        pieces: list[Piece] = []
        first = 0
        rest: tuple[int, ...] = ()
        for part, slot in parts.items():
            if part.endswith(kind):
                for piece in slot.pieces:
                    start, *other = piece.starts
                    pieces.append(Piece(piece.view, (first + start, *other)))
                first, rest = first + slot.shape[0], slot.shape[1:]
        found[f"{name}.{kind}"] = Slot((first, *rest), tuple(pieces))
    return found


def _turned(slot: Slot) -> Slot:
    """`[out, in]` as the checkpoint has it, `[in, out]`; a bias is the same."""
    pieces = tuple(Piece(piece.view.t(), piece.starts[::-1]) for piece in slot.pieces)
    return Slot(slot.shape[::-1], pieces)


class GPT2:
    """`max_len` is for the same call as Llama's; learned positions come with the checkpoint."""

    prefix = "transformer."

    def __init__(
        self,
        config: ModelConfig,
        ops: Ops,
        dtype: torch.dtype,
        device: torch.device,
        *,
        max_len: int | None = None,
        group: Group = SOLO,
        slab: Slab | None = None,
    ) -> None:
        self.shard = shard(config, group.rank, group.size)
        self.config = self.shard.config
        makings = Makings(self.shard, group, ops, dtype, device, slab)
        self.embedding = Embedding(makings)
        self._positions_shape = (config.max_position, config.hidden_size)
        # The first rank adds them.
        self.positions = makings.empty(*self._positions_shape) if group.rank == 0 else None
        self.layers = [Layer(makings, layer) for layer in range(config.num_layers)]
        self.ln_f = Norm(makings, bias=True)

    def forward(self, batch: Batch) -> Tensor:
        residual = self.embedding(batch.token_ids, batch.positions, self.positions)
        for layer in self.layers:
            layer(residual, batch)
        return residual

    def logits(self, residual: Tensor) -> Tensor:
        return self.embedding.logits(residual, self.ln_f)

    def slots(self) -> dict[str, Slot]:
        found = self.embedding.slots("wte.weight", "lm_head.weight") | self.ln_f.slots("ln_f")
        positions = self.positions
        found["wpe.weight"] = (
            Slot(self._positions_shape, ()) if positions is None else whole(positions)
        )
        for index, layer in enumerate(self.layers):
            found |= {f"h.{index}.{name}": slot for name, slot in layer.slots().items()}
        return found

    def ignores(self, name: str) -> bool:
        tied_head = name == "lm_head.weight" and self.config.tie_word_embeddings
        return tied_head or _MASKS.fullmatch(name) is not None

    def prepare(self) -> None:
        self.embedding.prepare()
        for layer in self.layers:
            for linear in layer.linears():
                linear.prepare()
