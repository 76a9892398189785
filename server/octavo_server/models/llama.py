"""Llama and its kin: Llama 2/3, SmolLM2, TinyLlama, Mistral, Qwen2 (biases), Qwen3 (q/k norm)."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.ops import Ops
from octavo_server.model_config import ModelConfig
from octavo_server.models.causal_lm import Batch, Embedding, Linear, new_residual
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

    def __call__(self, x: Tensor, positions: Tensor, cos_sin: Tensor, batch: Batch) -> Tensor:
        ops, heads, kv_heads = self.ops, self.heads, self.kv_heads
        qkv = self.qkv(x).view(-1, heads + 2 * kv_heads, self.head_size)
        query, key, value = qkv.split((heads, kv_heads, kv_heads), dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            query = ops.rms_norm(query, self.query_norm, self.eps)
            key = ops.rms_norm(key, self.key_norm, self.eps)
        ops.rotary(query, key, positions, cos_sin)
        key_cache, value_cache = batch.kv_caches[self.layer]
        ops.cache_write(key, value, key_cache, value_cache, batch.slots)
        seen = ops.paged_attention(
            query,
            key_cache,
            value_cache,
            batch.block_tables,
            batch.query_starts,
            batch.context_lens,
            max_query_len=batch.max_query_len,
            max_context_len=batch.max_context_len,
            scale=self.head_size**-0.5,
            sliding_window=self.window,
        )
        return self.output(seen.reshape(-1, self.query_size))

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
        self.ops, self.eps = ops, config.norm_eps
        hidden, self.inner = config.hidden_size, config.intermediate_size
        self.attention = Attention(config, layer, ops, dtype, device)
        self.gate_up = Linear(ops, 2 * self.inner, hidden, config.mlp_bias, dtype, device)
        self.down = Linear(ops, hidden, self.inner, config.mlp_bias, dtype, device)
        self.input_norm = torch.empty(hidden, dtype=dtype, device=device)
        self.mlp_norm = torch.empty(hidden, dtype=dtype, device=device)

    def __call__(
        self, x: Tensor, residual: Tensor, positions: Tensor, cos_sin: Tensor, batch: Batch
    ) -> Tensor:
        """x is the last layer's output, not yet in `residual`, which is updated in place."""
        x = self.ops.rms_norm(x, self.input_norm, self.eps, residual)
        x = self.attention(x, positions, cos_sin, batch)
        x = self.ops.rms_norm(x, self.mlp_norm, self.eps, residual)
        return self.down(self.ops.silu_mul(self.gate_up(x)))

    def slots(self) -> dict[str, Tensor]:
        found = {
            "input_layernorm.weight": self.input_norm,
            "post_attention_layernorm.weight": self.mlp_norm,
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
        self.config, self.ops = config, ops
        self.embedding = Embedding(
            ops, config.vocab_size, config.hidden_size, config.tie_word_embeddings, dtype, device
        )
        self.layers = [
            Layer(config, layer, ops, dtype, device) for layer in range(config.num_layers)
        ]
        self.norm = torch.empty(config.hidden_size, dtype=dtype, device=device)
        length = min(config.max_position, max_len or config.max_position)
        self.cos_sin = cos_sin_table(config.rope, length, device)  # float32 [length, rotary_size]

    def forward(self, token_ids: Tensor, positions: Tensor, batch: Batch) -> Tensor:
        x = self.embedding(token_ids)
        residual = new_residual(x)
        for layer in self.layers:
            x = layer(x, residual, positions, self.cos_sin, batch)
        return self.ops.rms_norm(x, self.norm, self.config.norm_eps, residual)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.embedding.logits(hidden)

    def slots(self) -> dict[str, Tensor]:
        found = {"embed_tokens.weight": self.embedding.table, "norm.weight": self.norm}
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
