"""What a checkpoint's config.json says about its model, in one family-neutral form.

Torch-free: the operator and `octavo plan` read it too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from octavo_server.errors import CorruptModel, UnsupportedModel
from octavo_server.loading.damage import damage_in

Family = Literal["gpt2", "llama"]
RopeScaling = Literal["none", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding: frequency i is `theta ** (-2i / rotary_size)`, then changed by `scaling`.

    `attention_factor` multiplies cos and sin (yarn; 0 means "from the factor"). `frequency_factors`
    (GGUF's `rope_freqs`, one per frequency) divide the frequencies; empty = none.
    """

    theta: float
    rotary_size: int
    scaling: RopeScaling = "none"
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0
    truncate: bool = True
    frequency_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shapes and switches of one decoder-only model.

    `layer_windows[i]` is layer i's sliding window in tokens (0: it sees everything);
    `sliding_window` is the largest of them. `dtype` is what the checkpoint says it is stored in.
    """

    architecture: str
    family: Family
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    max_position: int
    norm_eps: float
    tie_word_embeddings: bool
    activation: str
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope: RopeConfig | None
    sliding_window: int
    layer_windows: tuple[int, ...]
    dtype: str

    @property
    def layer_weights(self) -> int:
        """Elements of all layers' matrices: a token costs two operations for each."""
        attention = 2 * (self.num_heads + self.num_kv_heads) * self.head_size
        mlp = (3 if self.activation in _SILU else 2) * self.intermediate_size
        return self.num_layers * self.hidden_size * (attention + mlp)

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise CorruptModel(
                f"the model's config has {self.num_heads} attention heads, which is not a multiple "
                f"of its {self.num_kv_heads} key/value heads"
            )
        if len(self.layer_windows) != self.num_layers:
            raise CorruptModel(
                f"the model's config describes {len(self.layer_windows)} layers' attention types "
                f"but has {self.num_layers} layers"
            )
        if min(self.layer_windows) < 0:
            raise CorruptModel(
                f"the model's config has a sliding window of {min(self.layer_windows)} tokens"
            )
        if not 2 <= self.max_position <= _MAX_POSITIONS:
            raise UnsupportedModel(
                f"the model has {self.max_position} positions; Octavo serves 2 (a prompt's token "
                f"and an answer's) to {_MAX_POSITIONS}"
            )
        if self.rope and self.head_size % 2:
            raise UnsupportedModel(
                f"the model has heads of size {self.head_size}; rotary embedding needs an even one"
            )


_ARCHITECTURES: dict[str, Family] = {
    "GPT2LMHeadModel": "gpt2",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "llama",
    "Qwen3ForCausalLM": "llama",
}
_BY_MODEL_TYPE = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_GELU_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_SILU = ("silu", "swish")
_DTYPES = ("float32", "float16", "bfloat16")
# Far past every model there is: a damaged number must not become a long loop or a huge tuple.
_MAX_SIZE, _MAX_LAYERS = 2**31 - 1, 10_000
# Positions are counted in float32 where angles are made.
_MAX_POSITIONS = 2**24


def parse_config(config: Mapping[str, Any]) -> ModelConfig:
    """Read a config.json, of transformers 5 (`rope_parameters`, `dtype`) or older.

    Raises UnsupportedModel where Octavo cannot serve it, CorruptModel where it makes no sense.
    """
    with damage_in("the model's config"):
        return _parse(config)


def _parse(config: Mapping[str, Any]) -> ModelConfig:
    architecture = _architecture(config)
    quantised = _object(config, "quantization_config")
    if quantised:
        method = quantised.get("quant_method", "an unnamed method")
        raise UnsupportedModel(
            f"the checkpoint is quantised with {method}; Octavo serves unquantised safetensors and "
            "GGUF files"
        )
    if _ARCHITECTURES[architecture] == "gpt2":
        return _parse_gpt2(config, architecture)
    return _parse_llama(config, architecture)


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CorruptModel(f"the model's config has architectures {names!r}, not a list of names")
    if not names and config.get("model_type") in _BY_MODEL_TYPE:
        return _BY_MODEL_TYPE[config["model_type"]]
    for name in names:
        if name in _ARCHITECTURES:
            return str(name)
    called = ", ".join(names) if names else f"model type {config.get('model_type')!r}"
    raise UnsupportedModel(f"{called} is not supported; Octavo serves {', '.join(_ARCHITECTURES)}")


def _parse_gpt2(config: Mapping[str, Any], architecture: str) -> ModelConfig:
    if not config.get("scale_attn_weights", True) or config.get("scale_attn_by_inverse_layer_idx"):
        raise UnsupportedModel("GPT-2 with changed attention scaling is not supported")
    if config.get("add_cross_attention"):
        raise UnsupportedModel("GPT-2 with cross-attention is not supported")
    hidden_size = _size(config, "n_embd", "hidden_size")
    num_layers = _size(config, "n_layer", "num_hidden_layers", most=_MAX_LAYERS)
    num_heads = _size(config, "n_head", "num_attention_heads")
    return ModelConfig(
        architecture=architecture,
        family="gpt2",
        vocab_size=_size(config, "vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_size=_divided(hidden_size, num_heads),
        intermediate_size=_size(config, "n_inner", default=4 * hidden_size),
        max_position=_size(config, "n_positions", "max_position_embeddings", "n_ctx"),
        norm_eps=_number(config, "layer_norm_epsilon", 1e-5),
        tie_word_embeddings=_switch(config, "tie_word_embeddings", True),
        activation=_activation(config.get("activation_function") or "gelu_new", _GELU_TANH),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        qk_norm=False,
        rope=None,
        sliding_window=0,
        layer_windows=(0,) * num_layers,
        dtype=_dtype(config),
    )


def _parse_llama(config: Mapping[str, Any], architecture: str) -> ModelConfig:
    hidden_size = _size(config, "hidden_size")
    num_layers = _size(config, "num_hidden_layers", most=_MAX_LAYERS)
    num_heads = _size(config, "num_attention_heads")
    qwen2, qwen3 = architecture == "Qwen2ForCausalLM", architecture == "Qwen3ForCausalLM"
    head_size = (
        _size(config, "head_dim", default=128)
        if qwen3
        else _size(config, "head_dim", default=0) or _divided(hidden_size, num_heads)
    )
    max_position = _size(config, "max_position_embeddings", default=2048)
    rope, max_position = _rope(config, head_size, max_position)
    windows = _layer_windows(config, architecture, num_layers)
    # Llama's and Qwen3's attention_bias is for all four projections; Qwen2 always has q, k and v.
    attention_bias = _switch(config, "attention_bias", False) and not qwen2
    return ModelConfig(
        architecture=architecture,
        family="llama",
        vocab_size=_size(config, "vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=_size(config, "num_key_value_heads", default=num_heads),
        head_size=head_size,
        intermediate_size=_size(config, "intermediate_size"),
        max_position=max_position,
        norm_eps=_number(config, "rms_norm_eps", 1e-6),
        tie_word_embeddings=_switch(config, "tie_word_embeddings", False),
        activation=_activation(config.get("hidden_act") or "silu", _SILU),
        qkv_bias=qwen2 or attention_bias,
        output_bias=attention_bias,
        mlp_bias=architecture == "LlamaForCausalLM" and _switch(config, "mlp_bias", False),
        qk_norm=qwen3,
        rope=rope,
        sliding_window=max(windows),
        layer_windows=windows,
        dtype=_dtype(config),
    )


def _layer_windows(
    config: Mapping[str, Any], architecture: str, num_layers: int
) -> tuple[int, ...]:
    if architecture == "LlamaForCausalLM":
        return (0,) * num_layers
    # Both configs' classes default to 4096 where the key is absent; null switches it off.
    window = config.get("sliding_window", 4096) or 0
    if not isinstance(window, int) or window < 0:
        raise CorruptModel(f"the model's config has sliding_window {window!r}")
    if architecture == "MistralForCausalLM":
        return (window,) * num_layers
    if not config.get("use_sliding_window", False):
        return (0,) * num_layers
    types = config.get("layer_types")
    if types is None:
        first = config.get("max_window_layers", 28)
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise CorruptModel(f"the model's config has max_window_layers {first!r}")
        return tuple(window if layer >= first else 0 for layer in range(num_layers))
    if not isinstance(types, list):
        raise CorruptModel(f"the model's config has layer_types {types!r}, not a list")
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown:
        raise UnsupportedModel(f"layers of type {unknown[0]} are not supported")
    return tuple(window if kind == "sliding_attention" else 0 for kind in types)


def _rope(config: Mapping[str, Any], head_size: int, max_position: int) -> tuple[RopeConfig, int]:
    """The rotary settings and the longest position they serve (linear and yarn stretch it)."""
    given = _object(config, "rope_parameters") or _object(config, "rope_scaling")
    if isinstance(given.get("full_attention"), Mapping):
        given = _same_for_all_layers(given)
    theta = _number(given, "rope_theta", 0.0) or _number(config, "rope_theta", 0.0) or 10000.0
    if theta < 0.0:
        raise CorruptModel(f"the model's config has rope_theta {theta:g}")
    kind = given.get("rope_type") or given.get("type") or "default"
    partial = given.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        raise UnsupportedModel("rotary embedding of a part of each head is not supported")
    if kind == "default":
        return RopeConfig(theta=theta, rotary_size=head_size), max_position
    if kind not in ("linear", "llama3", "yarn"):
        raise UnsupportedModel(
            f"rope scaling {kind!r} is not supported; Octavo has linear, llama3 and yarn"
        )
    factor = _number(given, "factor", 0.0)
    if factor < 1.0:
        raise CorruptModel(f"the model's config has {kind} rope scaling with factor {factor:g}")
    original = _size(given, "original_max_position_embeddings", default=max_position)
    original = _size(config, "original_max_position_embeddings", default=original)
    if kind == "linear":
        rope = RopeConfig(theta=theta, rotary_size=head_size, scaling="linear", factor=factor)
        return rope, int(max_position * factor)
    if kind == "llama3":
        rope = RopeConfig(
            theta=theta,
            rotary_size=head_size,
            scaling="llama3",
            factor=factor,
            original_max_position=original,
            low_freq_factor=_number(given, "low_freq_factor", 1.0),
            high_freq_factor=_number(given, "high_freq_factor", 4.0),
        )
        return rope, max_position
    if given.get("mscale") or given.get("mscale_all_dim"):
        raise UnsupportedModel("yarn rope scaling with mscale is not supported")
    rope = RopeConfig(
        theta=theta,
        rotary_size=head_size,
        scaling="yarn",
        factor=factor,
        original_max_position=original,
        beta_fast=_number(given, "beta_fast", 32.0),
        beta_slow=_number(given, "beta_slow", 1.0),
        attention_factor=_number(given, "attention_factor", 0.0),
        truncate=bool(given.get("truncate", True)),
    )
    return rope, max(max_position, int(original * factor))


def _same_for_all_layers(given: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 may write rope_parameters per layer type; ours must agree."""
    kinds = [dict(value) for value in given.values() if isinstance(value, Mapping)]
    if any(kind != kinds[0] for kind in kinds):
        raise UnsupportedModel("rotary settings that differ between layers are not supported")
    return kinds[0]


def _object(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name) or {}
    if not isinstance(value, Mapping):
        raise CorruptModel(f"the model's config has {name} {value!r}, not an object")
    return dict(value)


def _size(
    config: Mapping[str, Any], *names: str, default: int | None = None, most: int = _MAX_SIZE
) -> int:
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CorruptModel(f"the model's config has {name} {value!r}, not a positive integer")
        if value > most:
            raise CorruptModel(f"the model's config has {name} {value}, more than {most}")
        return value
    if default is None:
        raise CorruptModel(f"the model's config has no {names[0]}")
    return default


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise CorruptModel(f"the model's config has {name} {value!r}, not a number")
    return float(value)


def _switch(config: Mapping[str, Any], name: str, default: bool) -> bool:
    value = config.get(name)
    return default if value is None else bool(value)


def _divided(hidden_size: int, num_heads: int) -> int:
    if hidden_size % num_heads:
        raise CorruptModel(
            f"the model's config has hidden size {hidden_size}, which is not a multiple of its "
            f"{num_heads} attention heads"
        )
    return hidden_size // num_heads


def _activation(name: str, served: tuple[str, ...]) -> str:
    if name not in served:
        raise UnsupportedModel(f"activation {name!r} is not supported; Octavo has {served[0]}")
    return served[0]


def _dtype(config: Mapping[str, Any]) -> str:
    """transformers wrote `torch_dtype` before 5; without either, weights are float32."""
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    if name not in _DTYPES:
        raise UnsupportedModel(f"weights of dtype {name} are not supported")
    return name
