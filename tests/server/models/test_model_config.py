"""config.json of old and new transformers -> ModelConfig, and what is refused in which words."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from tests.server.models.published_configs import GPT2, LLAMA, MISTRAL, QWEN2, QWEN3

from octavo_server.errors import CorruptModel, UnsupportedModel
from octavo_server.model_config import parse_config

_LLAMA3_SCALING = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def test_llama() -> None:
    config = parse_config(LLAMA)
    assert config.family == "llama"
    assert (config.num_heads, config.num_kv_heads, config.head_size) == (32, 8, 64)
    assert config.max_position == 131072
    assert config.dtype == "bfloat16"
    assert config.tie_word_embeddings
    assert config.rope is not None
    assert config.rope.theta == 500000.0
    assert not (config.qkv_bias or config.output_bias or config.mlp_bias or config.qk_norm)


def test_both_spellings_of_rope_and_dtype_mean_the_same() -> None:
    old = LLAMA | {"rope_scaling": _LLAMA3_SCALING}
    new = {
        key: value
        for key, value in LLAMA.items()
        if key not in ("rope_theta", "rope_scaling", "torch_dtype")
    }
    new |= {"dtype": "bfloat16", "rope_parameters": _LLAMA3_SCALING | {"rope_theta": 500000.0}}
    older = LLAMA | {"rope_scaling": {**_LLAMA3_SCALING, "rope_type": None, "type": "llama3"}}
    assert parse_config(old) == parse_config(new) == parse_config(older)
    assert parse_config(old).rope is not None
    assert parse_config(old).max_position == 131072


def test_rope_parameters_per_layer_type_must_agree() -> None:
    one = {"rope_type": "default", "rope_theta": 1e6}
    both = {"full_attention": one, "sliding_attention": dict(one)}
    plain = {key: value for key, value in QWEN3.items() if key != "rope_theta"}
    assert parse_config(plain | {"rope_parameters": both}) == parse_config(QWEN3)
    differs = both | {"sliding_attention": one | {"rope_theta": 10000.0}}
    with pytest.raises(UnsupportedModel, match="differ between layers"):
        parse_config(plain | {"rope_parameters": differs})


@pytest.mark.parametrize(
    ("scaling", "longest"),
    [
        ({"type": "linear", "factor": 4.0}, 131072),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        ({"rope_type": "yarn", "factor": 2.0}, 65536),
    ],
)
def test_linear_and_yarn_stretch_the_context(scaling: dict[str, Any], longest: int) -> None:
    assert parse_config(QWEN2 | {"rope_scaling": scaling}).max_position == longest


def test_gpt2() -> None:
    config = parse_config(GPT2)
    assert config.family == "gpt2"
    assert config.rope is None
    assert (config.hidden_size, config.intermediate_size, config.head_size) == (1280, 5120, 64)
    assert config.tie_word_embeddings
    assert config.qkv_bias and config.output_bias and config.mlp_bias
    assert config.dtype == "float32"


def test_mistral_windows() -> None:
    assert parse_config(MISTRAL).layer_windows == (4096,) * 32
    assert parse_config(MISTRAL | {"sliding_window": None}).sliding_window == 0
    absent = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    assert parse_config(absent).sliding_window == 4096
    # Llama's class has no windows, whatever its config.json holds.
    assert parse_config(LLAMA | {"sliding_window": 4096}).sliding_window == 0


def test_qwen2_windows() -> None:
    assert parse_config(QWEN2).sliding_window == 0
    used = QWEN2 | {"use_sliding_window": True, "max_window_layers": 20, "sliding_window": 100}
    assert parse_config(used).layer_windows == (0,) * 20 + (100,) * 8
    types = ["full_attention", "sliding_attention"] * 14
    assert parse_config(used | {"layer_types": types}).layer_windows == (0, 100) * 14
    # Written out by transformers 5 even where windows are off.
    off = QWEN2 | {"layer_types": ["full_attention"] * 28}
    assert parse_config(off).sliding_window == 0
    with pytest.raises(UnsupportedModel, match="chunked_attention"):
        parse_config(used | {"layer_types": ["chunked_attention"] * 28})
    with pytest.raises(CorruptModel, match="3 layers' attention types"):
        parse_config(used | {"layer_types": ["full_attention"] * 3})


def test_biases_and_norms() -> None:
    qwen2, qwen3 = parse_config(QWEN2), parse_config(QWEN3)
    assert qwen2.qkv_bias and not qwen2.output_bias and not qwen2.qk_norm
    assert qwen3.qk_norm and not qwen3.qkv_bias
    assert qwen3.head_size == 128  # not hidden_size / heads
    biased = parse_config(LLAMA | {"attention_bias": True, "mlp_bias": True})
    assert biased.qkv_bias and biased.output_bias and biased.mlp_bias


def test_model_type_stands_in_for_missing_architectures() -> None:
    bare = {key: value for key, value in LLAMA.items() if key != "architectures"}
    assert parse_config(bare) == parse_config(LLAMA)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LLAMA | {"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM is not supported"),
        ({"model_type": "bert"}, "model type 'bert' is not supported"),
        (LLAMA | {"quantization_config": {"quant_method": "awq"}}, "quantised with awq"),
        (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        (LLAMA | {"rope_scaling": {"rope_type": "longrope"}}, "'longrope'"),
        (LLAMA | {"hidden_act": "gelu"}, "activation 'gelu'"),
        (GPT2 | {"activation_function": "relu"}, "activation 'relu'"),
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "attention scaling"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "a part of each head"),
        (LLAMA | {"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
    ],
)
def test_unsupported(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        parse_config(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "no hidden_size"),
        ({"vocab_size": "many"}, "vocab_size 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0"),
        ({"num_key_value_heads": 5}, "not a multiple"),
        ({"head_dim": None, "num_attention_heads": 30, "num_key_value_heads": 6}, "hidden size"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor 0.5"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps 'small'"),
    ],
)
def test_nonsense(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CorruptModel, match=words):
        parse_config(LLAMA | change)


def test_config_and_memory_plan_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; "
        "import octavo_server.model_config, octavo_server.memory_plan; "
        "import octavo_server.loading.describe, octavo_server.loading.source; "
        "assert 'transformers' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
