"""Mistakes of a caller of `LLM` are typed errors that name what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo_server.config import EngineConfig
from octavo_server.errors import InvalidRequest, InvalidSettings
from octavo_server.llm_arguments import (
    checked_config,
    checked_conversations,
    checked_params,
    checked_prompts,
)
from octavo_server.sampling_params import SamplingParams

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_model_len": "a"}, "max_model_len: expected int | None, got str"),
        ({"foo": 2}, "LLM takes no foo; it takes tokenizer, "),
        ({"max_model_length": 2}, "LLM takes no max_model_length; did you mean max_model_len?"),
        ({"dtype": "fp8"}, "dtype must be one of auto, float32, bfloat16, float16, not 'fp8'"),
        ({"kv_cache_memory_bytes": "much"}, "kv_cache_memory_bytes: 'much' is not a size such as"),
        ({"kv_cache_memory_bytes": 0}, "kv_cache_memory_bytes must be at least 1, not 0"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be at least 1, not 0"),
        ({"max_num_seqs": -1}, "max_num_seqs must be at least 1, not -1"),
        ({"gpu_memory_utilization": 2}, "--gpu-memory-utilization must be 0.05 to 0.98, not 2"),
        ({"max_model_len": 1}, "--max-model-len must be -1 or at least 2, not 1"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidSettings) as found:
        checked_config("m", settings)
    assert str(found.value).startswith(sentence)


def test_settings_as_the_command_line_has_them() -> None:
    config = checked_config(Path("a/b"), {"kv_cache_memory_bytes": "1MiB", "max_model_len": -1})
    assert config == EngineConfig(model="a/b", kv_cache_memory_bytes=1 << 20, max_model_len=-1)
    with pytest.raises(InvalidSettings, match="model must be a folder, file or Hub id, not 5"):
        checked_config(5, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("a", ["a"]),
        ([1, 2], [[1, 2]]),
        ((1, 2), [[1, 2]]),
        (["a", [1, 2], (3,)], ["a", [1, 2], [3]]),
        ([{"prompt_token_ids": [1, 2, 3]}, {"prompt": "a"}], [[1, 2, 3], "a"]),
        ({"prompt": "a"}, ["a"]),
        ([], []),
        ([[]], [[]]),
    ],
)
def test_forms_of_prompts(given: Any, prompts: list[Any]) -> None:
    assert checked_prompts(given) == prompts


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (5, "prompts must be a text, token ids or a list of these, not a int"),
        (None, "prompts must be a text"),
        (["a", None], "prompt 1 must be a text, a list of token ids"),
        ([[1, 2.5]], "prompt 0 must be a text, a list of token ids"),
        ([["a", "b"]], "prompt 0 must be a text"),
        ([{"text": "a"}], "prompt 0 must be a text"),
    ],
)
def test_what_is_no_prompt(given: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as found:
        checked_prompts(given)
    assert str(found.value).startswith(sentence)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"max_tokens": 5}, "sampling_params must be SamplingParams, not a dict"),
        (SamplingParams(max_tokens="5"), "SamplingParams: max_tokens: Expected int"),  # type: ignore[arg-type]
        (SamplingParams(temperature=-1), "temperature must be in [0, 2], not -1"),
        ([SamplingParams()], "2 prompts but 1 sampling_params"),
    ],
)
def test_wrong_params(given: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as found:
        checked_params(given, 2, 10)
    assert str(found.value).startswith(sentence)


def test_conversations() -> None:
    assert checked_conversations(MESSAGES) == [MESSAGES]
    assert checked_conversations([MESSAGES, MESSAGES]) == [MESSAGES, MESSAGES]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    (one,) = checked_conversations([{"role": "user", "content": parts}])
    assert one == [{"role": "user", "content": "a\nb"}]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("hi", "messages must be a list of messages"),
        ([], "messages must be a list of messages"),
        ([{"content": "a"}], "messages.0.role: Field required"),
        (["hi"], "messages: Input should be a valid list"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "content parts must be of type"),
    ],
)
def test_what_is_no_conversation(given: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as found:
        checked_conversations(given)
    assert str(found.value).startswith(sentence)
