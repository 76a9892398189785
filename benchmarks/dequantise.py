"""Writes a Llama-like GGUF file as a folder in Hugging Face's layout, its weights dequantised once.

So both servers of a comparison load the same numbers, neither through Octavo's own GGUF reader.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def dequantise(source: Path, dtype: str) -> Path:
    """The folder, made beside `source` on first use: config, tokenizer, weights in `dtype`."""
    target = source.with_name(f"{source.stem}-{dtype}")
    if (target / "config.json").exists():
        return target
    reader = gguf.GGUFReader(source)
    config = _config(reader, dtype)
    scratch = Path(tempfile.mkdtemp(dir=source.parent))
    try:
        tensors = {
            name: torch.from_numpy(np.array(values)).to(getattr(torch, dtype)).contiguous()
            for name, values in _tensors(reader, config)
        }
        save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        tokenizer.save_pretrained(scratch)
        (scratch / "config.json").write_text(json.dumps(config, indent=2))
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _config(reader: gguf.GGUFReader, dtype: str) -> dict[str, Any]:
    def field(name: str) -> Any:
        return reader.fields[name].contents()

    if field("general.architecture") != "llama":
        raise SystemExit("error: only Llama-like GGUF files can be written as a folder")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": field("llama.vocab_size"),
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": field("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": field("llama.rope.freq_base"),
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "tie_word_embeddings": not any(t.name == "output.weight" for t in reader.tensors),
        "torch_dtype": dtype,
    }


def _tensors(
    reader: gguf.GGUFReader, config: dict[str, Any]
) -> list[tuple[str, np.ndarray[Any, np.dtype[np.float32]]]]:
    found = []
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        values = values.reshape(tuple(reversed(tensor.shape.tolist())))
        if tensor.name in TOP:
            found.append((TOP[tensor.name], values))
            continue
        _, layer, kind, suffix = tensor.name.split(".")
        # The file holds rotary pairs side by side; transformers wants them half a head apart.
        if kind in ("attn_q", "attn_k"):
            heads = config["num_attention_heads" if kind == "attn_q" else "num_key_value_heads"]
            rows, columns = values.shape
            pairs = values.reshape(heads, rows // heads // 2, 2, columns)
            values = pairs.swapaxes(1, 2).reshape(rows, columns)
        found.append((f"model.layers.{layer}.{LAYER[kind]}.{suffix}", values))
    return found


if __name__ == "__main__":
    print(dequantise(Path(sys.argv[1]), sys.argv[2]))
