"""GPT-2: learned positions, LayerNorm with biases, weights stored transposed (`[in, out]`)."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from octavo_kernels.ops import Ops
from octavo_server.model_config import ModelConfig
from octavo_server.models.causal_lm import MLP_TOKENS, Batch, Embedding, Linear, Norm

# Causal masks that old checkpoints carry as buffers.
_MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


class Layer:
    def __init__(
        self, config: ModelConfig, layer: int, ops: Ops, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.ops, self.layer = ops, layer
        self.heads, self.head_size = config.num_heads, config.head_size
        hidden, inner = config.hidden_size, config.intermediate_size
        self.ln_1 = Norm(hidden, config.norm_eps, True, dtype, device)
        self.qkv = Linear(ops, 3 * hidden, hidden, True, dtype, device)
        self.output = Linear(ops, hidden, hidden, True, dtype, device)
        self.ln_2 = Norm(hidden, config.norm_eps, True, dtype, device)
        self.up = Linear(ops, inner, hidden, True, dtype, device)
        self.down = Linear(ops, hidden, inner, True, dtype, device)

    def __call__(self, residual: Tensor, batch: Batch) -> None:
        qkv = self.qkv.of_norm(residual, self.ln_1).view(-1, 3, self.heads, self.head_size)
        query, key, value = qkv.unbind(1)
        key_cache, value_cache = batch.kv_caches[self.layer]
        self.ops.cache_write(key, value, key_cache, value_cache, batch.slots)
        seen = self.ops.paged_attention(
            query, key_cache, value_cache, batch.attention, scale=self.head_size**-0.5
        )
        self.output.add_to(residual, seen.view(len(seen), -1))
        for part in residual.split(MLP_TOKENS):
            self.down.add_to(part, self.up.of_norm(part, self.ln_2, "gelu"))

    def slots(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, norm in (("ln_1", self.ln_1), ("ln_2", self.ln_2)):
            assert norm.bias is not None
            found |= {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}
        names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        for name, linear in zip(names, self.linears(), strict=True):
            assert linear.bias is not None
            found |= {f"{name}.weight": linear.weight.T, f"{name}.bias": linear.bias}
        return found

    def linears(self) -> list[Linear]:
        return [self.qkv, self.output, self.up, self.down]


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
    ) -> None:
        self.config = config
        self.embedding = Embedding(
            ops, config.vocab_size, config.hidden_size, config.tie_word_embeddings, dtype, device
        )
        self.positions = torch.empty(
            config.max_position, config.hidden_size, dtype=dtype, device=device
        )
        self.layers = [
            Layer(config, layer, ops, dtype, device) for layer in range(config.num_layers)
        ]
        self.ln_f = Norm(config.hidden_size, config.norm_eps, True, dtype, device)

    def forward(self, batch: Batch) -> Tensor:
        residual = self.embedding(batch.token_ids, batch.positions, self.positions)
        for layer in self.layers:
            layer(residual, batch)
        return residual

    def logits(self, residual: Tensor) -> Tensor:
        return self.embedding.logits(residual, self.ln_f)

    def slots(self) -> dict[str, Tensor]:
        assert self.ln_f.bias is not None
        found = {
            "wte.weight": self.embedding.table,
            "wpe.weight": self.positions,
            "ln_f.weight": self.ln_f.weight,
            "ln_f.bias": self.ln_f.bias,
        }
        if not self.config.tie_word_embeddings:
            found["lm_head.weight"] = self.embedding.head
        for index, layer in enumerate(self.layers):
            found |= {f"h.{index}.{name}": view for name, view in layer.slots().items()}
        return found

    def ignores(self, name: str) -> bool:
        tied_head = name == "lm_head.weight" and self.config.tie_word_embeddings
        return tied_head or _MASKS.fullmatch(name) is not None

    def prepare(self) -> None:
        self.embedding.prepare()
        for layer in self.layers:
            for linear in layer.linears():
                linear.prepare()
