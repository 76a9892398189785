"""transformers' model with the weights of a GGUF file, to compare Octavo's output with."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from octavo_server.loading.gguf import stored_gguf_tensors
from octavo_server.loading.gguf_config import gguf_model_config
from octavo_server.loading.gguf_file import read_gguf

SMOLLM2 = Path(__file__).parents[3] / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"


def transformers_twin(path: Path) -> transformers.LlamaForCausalLM:
    """A Llama GGUF file (without rope scaling) as transformers' own model, float32."""
    file = read_gguf(path)
    config = gguf_model_config(file)
    assert config.architecture == "LlamaForCausalLM"
    assert config.rope is not None
    assert config.rope.scaling == "none"
    assert not config.rope.frequency_factors
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_size,
            max_position_embeddings=config.max_position,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tie_word_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
            bos_token_id=None,
            eos_token_id=file.metadata.get("tokenizer.ggml.eos_token_id"),
            pad_token_id=None,
        )
    )
    weights = {tensor.name: tensor.read() for tensor in stored_gguf_tensors(file, config)}
    result = theirs.load_state_dict(weights, strict=False)
    tied = ["lm_head.weight"] if config.tie_word_embeddings else []
    assert (result.missing_keys, result.unexpected_keys) == (tied, [])
    return theirs.to(torch.float32).eval()
