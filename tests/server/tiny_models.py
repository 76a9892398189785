"""Small random-weight checkpoints in transformers' format, one for each family Octavo serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# Larger than the tokenizer's: ids past its vocabulary are legal.
VOCAB_SIZE = 384
EOS_TOKEN = "<|im_end|>"
_SPECIAL = ["<|endoftext|>", "<|im_start|>", EOS_TOKEN]
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXT = (
    "The capital of France is Paris. Tell me about efficient GPU utilization, paged attention, "
    "continuous batching and prefix caching. the other there then this that these"
)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "tie_word_embeddings": False,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Name -> configuration class, and what differs from _COMMON.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {}),
    "llama2": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama3": ("LlamaConfig", {"rope_parameters": _LLAMA3_ROPE}),
    # Three heads share a key: a group size that is no power of two, as SmolLM2-135M has.
    "smollm2": (
        "LlamaConfig",
        {"num_attention_heads": 6, "hidden_size": 96, "tie_word_embeddings": True},
    ),
    "mistral": ("MistralConfig", {"sliding_window": 20}),
    "qwen2": (
        "Qwen2Config",
        # Layers from max_window_layers on slide; the first sees everything.
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    # Heads wider than hidden_size / heads.
    "qwen3": ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}),
    "tinyllama": ("LlamaConfig", {"num_attention_heads": 8, "num_key_value_heads": 1}),
}


def make_tiny(family: str, folder: Path, seed: int = 0, **changes: object) -> Path:
    """Write config.json, model.safetensors, generation_config.json and a tokenizer; float32.

    Greedy output is varied and its margins are far above float32's noise. The same family and seed
    give the same weights; `changes` are to its config.
    """
    model = tiny_model(family, seed, **changes)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=1, eos_token_id=[2, 0], pad_token_id=0
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def tiny_model(family: str, seed: int = 0, **more: object) -> transformers.PreTrainedModel:
    """transformers' own model, in float32 with plain attention."""
    class_name, changes = FAMILIES[family]
    settings = _COMMON | changes
    if family == "gpt2":
        settings = {
            "vocab_size": VOCAB_SIZE,
            "n_embd": 64,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 512,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    config = getattr(transformers, class_name)(**(settings | more))
    config.architectures = None
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            _fill(name, weight, generator)
    return model.eval()


def _fill(name: str, weight: torch.Tensor, generator: torch.Generator) -> None:
    """Layers outweigh the embedding in the residual stream, so that output is not its own input."""
    noise = torch.randn(weight.shape, generator=generator)
    if weight.ndim == 1:
        around_one = name.endswith("weight")  # norms; the rest are biases
        weight.copy_(noise * 0.1 + (1.0 if around_one else 0.0))
    elif "lm_head" in name or "wpe" in name:
        weight.copy_(noise * 0.3)
    elif "embed_tokens" in name or "wte" in name:
        weight.copy_(noise * 0.1)
    else:
        ins = weight.shape[0 if name.startswith("transformer.h.") else 1]  # GPT-2's are [in, out]
        weight.copy_(noise * 1.5 * ins**-0.5)


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of about 300 ids with ChatML's special tokens; any text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token=EOS_TOKEN,
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = _CHAT_TEMPLATE
    wrapped.save_pretrained(folder)


def change_config(folder: Path, **changes: object) -> None:
    """Edit config.json; a value of None removes the key."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
