"""Model shapes and workloads of the rows, at full size and at a rehearsal's.

A model is a folder with a config.json and a tokenizer, served with dummy weights: speed does not
depend on the values, except that zeros would save power.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PROMPT = "Tell me about efficient GPU utilization"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

GPT2_LARGE: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 1280,
    "n_layer": 36,
    "n_head": 20,
    "n_positions": 1024,
    "vocab_size": 50257,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "tie_word_embeddings": True,
    "dtype": "float16",
}
LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "hidden_act": "silu",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
LLAMA_70B: dict[str, Any] = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
_TINY_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 49152}
_TINY_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
}


@dataclass(frozen=True, slots=True)
class Model:
    """A shape and the engine's settings for it, named as in `EngineConfig`."""

    name: str
    config: dict[str, Any]
    dtype: str
    utilization: float
    max_model_len: int | None = None  # None: the model's own, as vLLM ran
    device: str = "cuda"
    kv_cache_memory_bytes: int | None = None
    tp: int = 1

    @property
    def vocab_size(self) -> int:
        return int(self.config["vocab_size"])

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `LLM`."""
        found: dict[str, Any] = {
            "load_format": "dummy",
            "dtype": self.dtype,
            "device": self.device,
            "gpu_memory_utilization": self.utilization,
            "max_model_len": self.max_model_len,
            "kv_cache_memory_bytes": self.kv_cache_memory_bytes,
            "tensor_parallel_size": self.tp if self.tp > 1 else None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def flags(self) -> list[str]:
        """The same for `octavo serve`."""
        return [
            part
            for name, value in self.settings().items()
            for part in (f"--{name.replace('_', '-')}", str(value))
        ]

    def write(self, folder: Path, tokenizer: Path) -> Path:
        """A folder below `folder` that `octavo serve` takes; `tokenizer` holds TOKENIZER_FILES."""
        made = folder / self.name
        made.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.config, indent=1) + "\n"
        (made / "config.json").write_text(text, encoding="utf-8")
        for name in TOKENIZER_FILES:
            if (tokenizer / name).exists():
                shutil.copy(tokenizer / name, made / name)
        return made


MODELS = {
    "gpt2": Model("gpt2-large", GPT2_LARGE, "float16", 0.7),
    "llama": Model("llama-8b", LLAMA_8B, "bfloat16", 0.9, max_model_len=8192),
    "llama70b": Model("llama-70b", LLAMA_70B, "bfloat16", 0.95, max_model_len=4096),
    "qwen": Model("qwen3-0.6b", QWEN3_06B, "bfloat16", 0.9),
}


def model(key: str, *, tiny: bool, tp: int = 1) -> Model:
    """One of MODELS on `tp` GPUs; `tiny` keeps its family and switches but fits a CPU's
    milliseconds.
    """
    full = replace(MODELS[key], tp=tp)
    if not tiny:
        return full
    return replace(
        full,
        name=f"tiny-{full.name}",
        config={**full.config, **(_TINY_GPT2 if key == "gpt2" else _TINY_LLAMA)},
        dtype="float32",
        device="cpu",
        kv_cache_memory_bytes=64 << 20,
    )


@dataclass(frozen=True, slots=True)
class Sizes:
    """Requests and tokens of the workloads."""

    single_in: int = 512
    single_out: int = 128
    batch: int = 32
    s2_requests: int = 256
    s2_in: int = 512
    s2_out: int = 256
    nano_requests: int = 256
    nano_low: int = 100
    nano_high: int = 1024
    prefill_requests: int = 64
    prefix_requests: int = 128
    prefix_shared: int = 2048
    prefix_own: int = 64
    prefix_out: int = 64
    s1_tokens: int = 50
    s1_requests: int = 50
    s1_flood: int = 500
    flask_requests: int = 10
    s5_requests: int = 400
    s5_rate: float = 20.0  # requests/s


FULL = Sizes()
TINY = Sizes(
    single_in=24, single_out=8, batch=4,
    s2_requests=6, s2_in=24, s2_out=8,
    nano_requests=6, nano_low=8, nano_high=24,
    prefill_requests=4,
    prefix_requests=4, prefix_shared=48, prefix_own=8, prefix_out=4,
    s1_tokens=6, s1_requests=5, s1_flood=12, flask_requests=2,
    s5_requests=12,
)  # fmt: skip


def random_prompts(
    vocab_size: int, lengths: Sequence[int], seed: int, shared: Sequence[int] = ()
) -> list[list[int]]:
    """Token ids, uniform: another seed gives prompts that no cache has seen.

    Each begins with `shared`, which counts on top of its length.
    """
    draw = random.Random(seed)
    return [[*shared, *draw.choices(range(vocab_size), k=length)] for length in lengths]


def nano_lengths(sizes: Sizes) -> tuple[list[int], list[int]]:
    """Prompt and answer lengths, uniform, drawn as nano-vllm's benchmark does with seed 0.

    At full size 142,827 tokens go in and 133,966 come out, as in vLLM's recorded run.
    """
    draw = random.Random(0)
    low, high = sizes.nano_low, sizes.nano_high
    lengths_in = []
    for _ in range(sizes.nano_requests):
        length = draw.randint(low, high)
        for _ in range(length):
            draw.randint(0, 10000)  # its prompt's ids come from the same generator
        lengths_in.append(length)
    return lengths_in, [draw.randint(low, high) for _ in range(sizes.nano_requests)]


def poisson_arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds after the start at which each request is sent, the first at once.

    `rate` in requests/s; infinite sends all at once.
    """
    draw = random.Random(seed)
    at, arrivals = 0.0, []
    for _ in range(count):
        arrivals.append(at)
        if rate != float("inf"):
            at += draw.expovariate(rate)
    return arrivals
