"""The arithmetic of weights, blocks and contexts."""

from __future__ import annotations

import pytest
from tests.server.models.published_configs import GPT2, LLAMA, MISTRAL, QWEN2, QWEN3

from octavo_server.errors import InvalidSettings, OutOfMemory
from octavo_server.memory_plan import (
    CachePlan,
    kv_bytes_per_block,
    plan_blocks,
    readable_bytes,
    weight_bytes,
)
from octavo_server.model_config import parse_config

_GIB = 2**30


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        (LLAMA, 1_235_814_400),
        (GPT2, 774_030_080),
        (MISTRAL, 7_241_732_096),
        (QWEN2, 7_615_616_512),
        (QWEN3, 596_049_920),
    ],
)
def test_published_models_have_their_published_sizes(
    config: dict[str, object], weights: int
) -> None:
    assert weight_bytes(parse_config(config), "bfloat16") == 2 * weights
    assert weight_bytes(parse_config(config), "float32") == 4 * weights


def test_bytes_of_a_block() -> None:
    config = parse_config(LLAMA)
    assert kv_bytes_per_block(config, 16, "bfloat16") == 2 * 16 * 8 * 16 * 64 * 2
    assert kv_bytes_per_block(config, 16, "bfloat16", 2) == 16 * 8 * 16 * 64 * 2
    # More ranks than key/value heads: each holds one.
    assert kv_bytes_per_block(config, 16, "bfloat16", 16) == 2 * 16 * 1 * 16 * 64 * 2


def plan(cache_bytes: int, max_model_len: int | None, num_blocks: int | None = None) -> CachePlan:
    return plan_blocks(
        parse_config(LLAMA),
        block_size=16,
        dtype="bfloat16",
        cache_bytes=cache_bytes,
        max_model_len=max_model_len,
        num_blocks=num_blocks,
    )


def test_blocks_fill_the_cache_and_one_is_reserved() -> None:
    found = plan(_GIB, 4096)
    assert found.num_blocks == _GIB // (512 * 1024)
    assert found.cache_bytes <= _GIB
    assert found.cache_tokens == (found.num_blocks - 1) * 16
    assert found.max_model_len == 4096


def test_what_fits() -> None:
    assert plan(_GIB, -1).max_model_len == 2047 * 16
    assert plan(100 * _GIB, -1).max_model_len == 131072
    assert plan(100 * _GIB, None).max_model_len == 131072
    assert plan(0, -1, num_blocks=3).max_model_len == 32


def test_the_refusal_names_a_length_that_then_fits() -> None:
    with pytest.raises(OutOfMemory, match="longest context that fits is 32752") as caught:
        plan(_GIB, None)
    assert "--max-model-len 32752" in str(caught.value)
    assert plan(_GIB, 32752).max_model_len == 32752
    with pytest.raises(OutOfMemory):
        plan(_GIB, 32753)
    needed = int(str(caught.value).rpartition(" ")[2])
    assert plan(needed, None).max_model_len == 131072
    with pytest.raises(OutOfMemory):
        plan(needed - 1, None)


@pytest.mark.parametrize("cache_bytes", [-5, 0, 512 * 1024, 1024 * 1024 - 1])
def test_a_cache_without_a_usable_block(cache_bytes: int) -> None:
    with pytest.raises(OutOfMemory, match="too little for a single block"):
        plan(cache_bytes, -1)


@pytest.mark.parametrize("length", [0, 1, -2, 131073])
def test_lengths_the_model_cannot_do(length: int) -> None:
    with pytest.raises(InvalidSettings, match="--max-model-len"):
        plan(100 * _GIB, length)


@pytest.mark.parametrize("length", [-1, None, 2])
def test_room_for_one_token_is_too_little(length: int | None) -> None:
    def plan_of(blocks: int) -> CachePlan:
        return plan_blocks(
            parse_config(LLAMA),
            block_size=1,
            dtype="bfloat16",
            cache_bytes=0,
            max_model_len=length,
            num_blocks=blocks,
        )

    with pytest.raises(OutOfMemory, match="too little for a prompt's token and an answer's") as no:
        plan_of(2)
    assert "64.00 KiB" in str(no.value)
    needed = int(str(no.value).rpartition("--num-gpu-blocks-override ")[2])
    assert plan_of(needed).max_model_len >= 2


def test_small_sizes_have_small_units() -> None:
    assert readable_bytes(3 * 2**29) == "1.50 GiB"
    assert readable_bytes(2**20) == "1.00 MiB"
    assert readable_bytes(2**20 - 1024) == "1023.00 KiB"
    assert readable_bytes(0) == "0 bytes"
