"""Llama and its kin: Llama 2/3, SmolLM2, TinyLlama, Mistral, Qwen2 (biases), Qwen3 (q/k norm)."""

from __future__ import annotations

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
from octavo_server.models.rotary import cos_sin_table
from octavo_server.models.slab import Slab
from octavo_server.models.slot import Slot, whole


class Attention:
    def __init__(self, makings: Makings, layer: int) -> None:
        share, config = makings.shard, makings.shard.config
        self.ops, self.layer = makings.ops, layer
        self.heads, self.kv_heads = config.num_heads, config.num_kv_heads
        self.head_size, self.eps = config.head_size, config.norm_eps
        self.window = config.layer_windows[layer]
        parts = {"q_proj": share.query, "k_proj": share.key_value, "v_proj": share.key_value}
        self.qkv = NormedLinear(makings, parts, config.qkv_bias)
        self.output = ResidualLinear(makings, share.query, config.output_bias)
        self.query_norm = self.key_norm = None
        if config.qk_norm:
            self.query_norm = makings.empty(self.head_size)
            self.key_norm = makings.empty(self.head_size)

    def __call__(self, residual: Tensor, norm: Norm, cos_sin: Tensor, batch: Batch) -> None:
        """Add to `residual` what attention over `norm(residual)` gives."""
        heads, kv_heads = self.heads, self.kv_heads
        qkv = self.qkv.of_norm(residual, norm).view(-1, heads + 2 * kv_heads, self.head_size)
        query, key, value = qkv.split((heads, kv_heads, kv_heads), dim=1)
        key_cache, value_cache = batch.kv_caches[self.layer]
        self.ops.rotary_cache(
            query,
            key,
            value,
            key_cache,
            value_cache,
            batch.slots,
            batch.positions,
            cos_sin,
            self.query_norm,
            self.key_norm,
            self.eps,
        )
        seen = self.ops.paged_attention(
            query,
            key_cache,
            value_cache,
            batch.attention,
            scale=self.head_size**-0.5,
            sliding_window=self.window,
        )
        self.output.add_to(residual, seen.view(-1, heads * self.head_size))

    def slots(self) -> dict[str, Slot]:
        found = self.qkv.slots() | self.output.slots("o_proj")
        if self.query_norm is not None and self.key_norm is not None:
            found |= {
                "q_norm.weight": whole(self.query_norm),
                "k_norm.weight": whole(self.key_norm),
            }
        return found


class Layer:
    def __init__(self, makings: Makings, layer: int) -> None:
        share, bias = makings.shard, makings.shard.config.mlp_bias
        self.attention = Attention(makings, layer)
        parts = {"gate_proj": share.inner, "up_proj": share.inner}
        self.gate_up = NormedLinear(makings, parts, bias)
        self.down = ResidualLinear(makings, share.inner, bias)
        self.input_norm = Norm(makings, bias=False)
        self.mlp_norm = Norm(makings, bias=False)

    def __call__(self, residual: Tensor, cos_sin: Tensor, batch: Batch) -> None:
        self.attention(residual, self.input_norm, cos_sin, batch)
        for part in residual.split(MLP_TOKENS):
            self.down.add_to(part, self.gate_up.of_norm(part, self.mlp_norm, "silu_mul"))

    def slots(self) -> dict[str, Slot]:
        found = self.input_norm.slots("input_layernorm")
        found |= self.mlp_norm.slots("post_attention_layernorm")
        found |= {f"self_attn.{name}": slot for name, slot in self.attention.slots().items()}
        mlp = self.gate_up.slots() | self.down.slots("down_proj")
        return found | {f"mlp.{name}": slot for name, slot in mlp.items()}

    def linears(self) -> list[Linear]:
        return [self.attention.qkv, self.attention.output, self.gate_up, self.down]


class Llama:
    """`max_len` bounds the rotary table (None: all positions of the config)."""

    prefix = "model."

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
        assert config.rope is not None
        self.shard = shard(config, group.rank, group.size)
        self.config = self.shard.config
        makings = Makings(self.shard, group, ops, dtype, device, slab)
        self.embedding = Embedding(makings)
        self.layers = [Layer(makings, layer) for layer in range(config.num_layers)]
        self.norm = Norm(makings, bias=False)
        length = min(config.max_position, max_len or config.max_position)
        self.cos_sin = cos_sin_table(config.rope, length, device)  # float32 [length, rotary_size]

    def forward(self, batch: Batch) -> Tensor:
        residual = self.embedding(batch.token_ids, batch.positions)
        for layer in self.layers:
            layer(residual, self.cos_sin, batch)
        return residual

    def logits(self, residual: Tensor) -> Tensor:
        return self.embedding.logits(residual, self.norm)

    def slots(self) -> dict[str, Slot]:
        found = self.embedding.slots("embed_tokens.weight", "lm_head.weight")
        found |= self.norm.slots("norm")
        for index, layer in enumerate(self.layers):
            found |= {f"layers.{index}.{name}": slot for name, slot in layer.slots().items()}
        return found

    def ignores(self, name: str) -> bool:
        tied_head = name == "lm_head.weight" and self.config.tie_word_embeddings
        return tied_head or name.endswith("rotary_emb.inv_freq")

    def prepare(self) -> None:
        self.embedding.prepare()
        for layer in self.layers:
            for linear in layer.linears():
                linear.prepare()
