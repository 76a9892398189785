"""GGUF metadata -> the same ModelConfig that config.json gives."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from typing import Any

from octavo_server.errors import CorruptModel, UnsupportedModel
from octavo_server.loading.damage import damage_in
from octavo_server.loading.gguf_file import GgufFile
from octavo_server.model_config import ModelConfig, parse_config

# Mistral's files call themselves llama.
_ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_F32, _F16 = 0, 1
_DTYPES = {_F32: "float32", _F16: "float16"}


def gguf_model_config(file: GgufFile) -> ModelConfig:
    """Raises UnsupportedModel or CorruptModel, as `parse_config` does."""
    with damage_in(str(file.path)):
        return _config(file)


def _config(file: GgufFile) -> ModelConfig:
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        raise UnsupportedModel(
            f"{file.path} holds a {name!r} model; "
            f"from GGUF Octavo serves {', '.join(_ARCHITECTURES)}"
        )
    if int(file.metadata.get("split.count") or 1) > 1:
        raise UnsupportedModel(
            f"{file.path} is one part of a split file; merge the parts first "
            "(llama-gguf-split --merge)"
        )
    table = file.tensors.get("token_embd.weight")
    if table is None:
        raise CorruptModel(f"{file.path} has no tensor token_embd.weight")
    # Quantised weights are dequantised to what the settings say, bfloat16 if they say nothing.
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[name]],
        "vocab_size": table.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": _DTYPES.get(_layer_kind(file, table.kind), "bfloat16"),
    }
    if name == "gpt2":
        return parse_config(config | _gpt2(file))
    if file.metadata.get(f"{name}.expert_count"):
        raise UnsupportedModel(f"{file.path} holds a mixture of experts, which is not supported")
    parsed = parse_config(config | _llama(file, name))
    window = int(file.metadata.get(f"{name}.attention.sliding_window") or 0)
    if name == "llama" and window:
        windows = (window,) * parsed.num_layers
        parsed = replace(parsed, sliding_window=window, layer_windows=windows)
    return _with_tensors(parsed, file)


def _layer_kind(file: GgufFile, default: int) -> int:
    for name in ("blk.0.ffn_up.weight", "blk.0.ffn_down.weight"):
        if name in file.tensors:
            return file.tensors[name].kind
    return default


def _gpt2(file: GgufFile) -> dict[str, Any]:
    value = file.metadata.get
    return {
        "n_embd": value("gpt2.embedding_length"),
        "n_layer": value("gpt2.block_count"),
        "n_head": value("gpt2.attention.head_count"),
        "n_inner": value("gpt2.feed_forward_length"),
        "n_positions": value("gpt2.context_length"),
        "layer_norm_epsilon": value("gpt2.attention.layer_norm_epsilon"),
    }


def _llama(file: GgufFile, name: str) -> dict[str, Any]:
    def value(key: str) -> Any:
        return file.metadata.get(f"{name}.{key}")

    heads = value("attention.head_count")
    if isinstance(heads, list):
        raise UnsupportedModel(f"{file.path} has a number of heads that differs between layers")
    head_size = value("attention.key_length") or value("rope.dimension_count")
    rotary_size = value("rope.dimension_count") or head_size
    if head_size and rotary_size != head_size:
        raise UnsupportedModel("rotary embedding of a part of each head is not supported")
    if not head_size and isinstance(heads, int) and heads:
        head_size = int(value("embedding_length") or 0) // heads  # Qwen3's class defaults to 128
    return {
        "hidden_size": value("embedding_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": head_size or None,
        "intermediate_size": value("feed_forward_length"),
        "max_position_embeddings": value("context_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {
            "rope_theta": value("rope.freq_base"),
            **_rope_scaling(file, name),
        },
    }


def _rope_scaling(file: GgufFile, name: str) -> dict[str, Any]:
    def value(key: str) -> Any:
        return file.metadata.get(f"{name}.rope.scaling.{key}")

    kind, factor = value("type") or "none", value("factor")
    if kind == "none" or not factor:
        return {}
    return {
        "rope_type": kind,
        "factor": factor,
        "original_max_position_embeddings": value("original_context_length"),
        "beta_fast": value("yarn_beta_fast"),
        "beta_slow": value("yarn_beta_slow"),
    }


def _with_tensors(config: ModelConfig, file: GgufFile) -> ModelConfig:
    """Biases show only in the table of tensors; Llama 3's rope scaling is a tensor of divisors."""
    tensors = file.tensors
    assert config.rope is not None
    rope = config.rope
    if "rope_freqs.weight" in tensors:
        rope = replace(rope, frequency_factors=_frequency_factors(file, rope.rotary_size // 2))
    return replace(
        config,
        rope=rope,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        output_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_down.bias" in tensors,
    )


def _frequency_factors(file: GgufFile, count: int) -> tuple[float, ...]:
    tensor = file.tensors["rope_freqs.weight"]
    start = file.data_offset + tensor.offset
    if tensor.kind != _F32 or tensor.shape != (count,) or start + 4 * count > len(file.data):
        raise CorruptModel(f"{file.path} has a rope_freqs.weight that is not {count} floats")
    factors = struct.unpack_from(f"<{count}f", file.data, start)
    if not all(math.isfinite(factor) and factor > 0 for factor in factors):
        raise CorruptModel(f"{file.path} has a rope_freqs.weight with values that are not positive")
    return factors
