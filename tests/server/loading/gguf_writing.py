"""Tiny checkpoints rewritten as GGUF files, the way llama.cpp's converter does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from octavo_server.model_config import parse_config
from octavo_server.models.rotary import inverse_frequencies

_CONTROL, _NORMAL = 3, 1


def write_gguf(
    folder: Path,
    path: Path,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """`folder` is what `make_tiny` wrote; matrices are stored as `kind`; `metadata` adds text."""
    config = json.loads((folder / "config.json").read_text())
    arch = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    weights = load_file(folder / "model.safetensors")
    writer = gguf.GGUFWriter(path, arch)
    names = gguf.get_tensor_name_map(
        {"gpt2": gguf.MODEL_ARCH.GPT2, "qwen2": gguf.MODEL_ARCH.QWEN2,
         "qwen3": gguf.MODEL_ARCH.QWEN3}.get(arch, gguf.MODEL_ARCH.LLAMA), 8,
    )  # fmt: skip
    _write_config(writer, arch, config)
    _write_tokenizer(writer, folder)
    for key, value in (metadata or {}).items():
        writer.add_string(key, value)
    if config.get("tie_word_embeddings", arch == "gpt2"):
        weights.pop("lm_head.weight", None)
    for name, weight in weights.items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        _write_tensor(writer, found, _as_llama_cpp(name, weight, arch, config), kind)
    parsed = parse_config(config)
    if parsed.rope is not None and parsed.rope.scaling == "llama3":
        scaled = inverse_frequencies(parsed.rope)[0].numpy()
        size, theta = parsed.rope.rotary_size, parsed.rope.theta
        plain = theta ** (-np.arange(0, size, 2, dtype=np.float32) / size)
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _as_llama_cpp(name: str, weight: np.ndarray, arch: str, config: dict[str, Any]) -> np.ndarray:
    if arch == "gpt2" and name.startswith("transformer.h.") and weight.ndim == 2:
        return weight.T
    if arch == "llama" and ".q_proj." in name:
        return _pairs(weight, config["num_attention_heads"])
    if arch == "llama" and ".k_proj." in name:
        return _pairs(weight, config["num_key_value_heads"])
    return weight


def _pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute of convert_hf_to_gguf.py."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _write_tensor(
    writer: gguf.GGUFWriter, name: str, weight: np.ndarray, kind: gguf.GGMLQuantizationType
) -> None:
    weight = np.ascontiguousarray(weight)
    if weight.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, weight)
    else:
        writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)


def _write_config(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    writer.add_file_type(0)
    if arch == "gpt2":
        writer.add_block_count(config["n_layer"])
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_feed_forward_length(4 * config["n_embd"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    if arch == "llama":
        writer.add_rope_dimension_count(config["head_dim"])
    if arch == "qwen3":
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])


def _write_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items()}
    count = tokenizer.get_vocab_size()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokenizer.id_to_token(number) for number in range(count)])
    writer.add_token_types([_CONTROL if n in special else _NORMAL for n in range(count)])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template((folder / "chat_template.jinja").read_text())
