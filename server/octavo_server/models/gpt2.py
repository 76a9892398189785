"""GPT-2: learned positions, LayerNorm with biases, weights stored transposed (`[in, out]`)."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo_kernels.ops import Ops
from octavo_server.model_config import ModelConfig
from octavo_server.models.causal_lm import Batch, Embedding, Linear, new_residual

# Causal masks that old checkpoints carry as buffers.
_MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


class Norm:
    def __init__(self, ops: Ops, config: ModelConfig, dtype: torch.dtype, device: torch.device):
        self.ops, self.eps = ops, config.norm_eps
        self.weight = torch.empty(config.hidden_size, dtype=dtype, device=device)
        self.bias = torch.empty(config.hidden_size, dtype=dtype, device=device)

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.ops.layer_norm(x, self.weight, self.bias, self.eps, residual)


class Layer:
    def __init__(
        self, config: ModelConfig, layer: int, ops: Ops, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.ops, self.layer = ops, layer
        self.heads, self.head_size = config.num_heads, config.head_size
        hidden, inner = config.hidden_size, config.intermediate_size
        self.ln_1 = Norm(ops, config, dtype, device)
        self.qkv = Linear(ops, 3 * hidden, hidden, True, dtype, device)
        self.output = Linear(ops, hidden, hidden, True, dtype, device)
        self.ln_2 = Norm(ops, config, dtype, device)
        self.up = Linear(ops, inner, hidden, True, dtype, device)
        self.down = Linear(ops, hidden, inner, True, dtype, device)

    def __call__(self, x: Tensor, residual: Tensor, batch: Batch) -> Tensor:
        """x is the last layer's output, not yet in `residual`, which is updated in place."""
        x = self.attention(self.ln_1(x, residual), batch)
        return self.down(self.ops.gelu(self.up(self.ln_2(x, residual))))

    def attention(self, x: Tensor, batch: Batch) -> Tensor:
        query, key, value = self.qkv(x).view(-1, 3, self.heads, self.head_size).unbind(1)
        key_cache, value_cache = batch.kv_caches[self.layer]
        self.ops.cache_write(key, value, key_cache, value_cache, batch.slots)
        seen = self.ops.paged_attention(
            query,
            key_cache,
            value_cache,
            batch.block_tables,
            batch.query_starts,
            batch.context_lens,
            max_query_len=batch.max_query_len,
            max_context_len=batch.max_context_len,
            scale=self.head_size**-0.5,
        )
        return self.output(seen.reshape(len(x), -1))

    def slots(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, norm in (("ln_1", self.ln_1), ("ln_2", self.ln_2)):
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
        self.ln_f = Norm(ops, config, dtype, device)

    def forward(self, token_ids: Tensor, positions: Tensor, batch: Batch) -> Tensor:
        x = self.embedding(token_ids) + F.embedding(positions, self.positions)
        residual = new_residual(x)
        for layer in self.layers:
            x = layer(x, residual, batch)
        return self.ln_f(x, residual)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.embedding.logits(hidden)

    def slots(self) -> dict[str, Tensor]:
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
