"""Llama and its kin: Llama 2/3, SmolLM2, TinyLlama, Mistral, Qwen2 (biases), Qwen3 (q/k norm)."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.ops import Ops
from octavo_server.model_config import ModelConfig
from octavo_server.models.causal_lm import MLP_TOKENS, Batch, Embedding, Linear, Norm
from octavo_server.models.rotary import cos_sin_table


class Attention:
    def __init__(
        self, config: ModelConfig, layer: int, ops: Ops, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.ops, self.layer = ops, layer
        self.heads, self.kv_heads = config.num_heads, config.num_kv_heads
        self.head_size, self.eps = config.head_size, config.norm_eps
        self.window = config.layer_windows[layer]
        self.query_size = self.heads * self.head_size
        self.kv_size = self.kv_heads * self.head_size
        outs = self.query_size + 2 * self.kv_size
        self.qkv = Linear(ops, outs, config.hidden_size, config.qkv_bias, dtype, device)
        self.output = Linear(
            ops, config.hidden_size, self.query_size, config.output_bias, dtype, device
        )
        self.query_norm = self.key_norm = None
        if config.qk_norm:
            self.query_norm = torch.empty(self.head_size, dtype=dtype, device=device)
            self.key_norm = torch.empty(self.head_size, dtype=dtype, device=device)

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
        self.output.add_to(residual, seen.view(-1, self.query_size))

    def slots(self) -> dict[str, Tensor]:
        found = self.qkv.slots(q_proj=self.query_size, k_proj=self.kv_size, v_proj=self.kv_size)
        found |= self.output.slots(o_proj=len(self.output.weight))
        if self.query_norm is not None and self.key_norm is not None:
            found |= {"q_norm.weight": self.query_norm, "k_norm.weight": self.key_norm}
        return found


class Layer:
    def __init__(
        self, config: ModelConfig, layer: int, ops: Ops, dtype: torch.dtype, device: torch.device
    ) -> None:
        hidden, self.inner = config.hidden_size, config.intermediate_size
        self.attention = Attention(config, layer, ops, dtype, device)
        self.gate_up = Linear(ops, 2 * self.inner, hidden, config.mlp_bias, dtype, device)
        self.down = Linear(ops, hidden, self.inner, config.mlp_bias, dtype, device)
        self.input_norm = Norm(hidden, config.norm_eps, False, dtype, device)
        self.mlp_norm = Norm(hidden, config.norm_eps, False, dtype, device)

    def __call__(self, residual: Tensor, cos_sin: Tensor, batch: Batch) -> None:
        self.attention(residual, self.input_norm, cos_sin, batch)
        for part in residual.split(MLP_TOKENS):
            self.down.add_to(part, self.gate_up.of_norm(part, self.mlp_norm, "silu_mul"))

    def slots(self) -> dict[str, Tensor]:
        found = {
            "input_layernorm.weight": self.input_norm.weight,
            "post_attention_layernorm.weight": self.mlp_norm.weight,
        }
        found |= {f"self_attn.{name}": view for name, view in self.attention.slots().items()}
        mlp = self.gate_up.slots(gate_proj=self.inner, up_proj=self.inner)
        mlp |= self.down.slots(down_proj=len(self.down.weight))
        return found | {f"mlp.{name}": view for name, view in mlp.items()}

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
    ) -> None:
        assert config.rope is not None
        self.config = config
        self.embedding = Embedding(
            ops, config.vocab_size, config.hidden_size, config.tie_word_embeddings, dtype, device
        )
        self.layers = [
            Layer(config, layer, ops, dtype, device) for layer in range(config.num_layers)
        ]
        self.norm = Norm(config.hidden_size, config.norm_eps, False, dtype, device)
        length = min(config.max_position, max_len or config.max_position)
        self.cos_sin = cos_sin_table(config.rope, length, device)  # float32 [length, rotary_size]

    def forward(self, batch: Batch) -> Tensor:
        residual = self.embedding(batch.token_ids, batch.positions)
        for layer in self.layers:
            layer(residual, self.cos_sin, batch)
        return residual

    def logits(self, residual: Tensor) -> Tensor:
        return self.embedding.logits(residual, self.norm)

    def slots(self) -> dict[str, Tensor]:
        found = {"embed_tokens.weight": self.embedding.table, "norm.weight": self.norm.weight}
        if not self.config.tie_word_embeddings:
            found["lm_head.weight"] = self.embedding.head
        for index, layer in enumerate(self.layers):
            found |= {f"layers.{index}.{name}": view for name, view in layer.slots().items()}
        return found

    def ignores(self, name: str) -> bool:
        tied_head = name == "lm_head.weight" and self.config.tie_word_embeddings
        return tied_head or name.endswith("rotary_emb.inv_freq")

    def prepare(self) -> None:
        self.embedding.prepare()
        for layer in self.layers:
            for linear in layer.linears():
                linear.prepare()
