"""Shares of published models: they tile the whole, and sizes that do not divide are refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from tests.server.models.published_configs import GPT2, LLAMA, MISTRAL, QWEN2, QWEN3

from octavo_kernels.ops import select_ops
from octavo_server.distributed.group import Alone
from octavo_server.distributed.shard import Shard, shard, sizes_that_work
from octavo_server.errors import InvalidSettings
from octavo_server.memory_plan import weight_bytes
from octavo_server.model_config import ModelConfig, parse_config
from octavo_server.models.causal_lm import CausalLM
from octavo_server.models.registry import build_model

_PUBLISHED = {"llama": LLAMA, "gpt2": GPT2, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3}


@pytest.fixture(params=sorted(_PUBLISHED))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return parse_config(_PUBLISHED[request.param])


def shards(config: ModelConfig, size: int) -> list[Shard]:
    return [shard(config, rank, size) for rank in range(size)]


def test_one_rank_has_everything(config: ModelConfig) -> None:
    only = shard(config, 0, 1)
    assert only.config == config
    for span in (only.query, only.key_value, only.inner, only.ids):
        assert (span.first, span.count) == (0, span.of)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_follow_one_another_and_leave_nothing_out(config: ModelConfig, size: int) -> None:
    parts = shards(config, size)
    for name in ("query", "inner", "ids"):
        spans = [getattr(part, name) for part in parts]
        assert spans[0].first == 0
        ends = [span.first + span.count for span in spans]
        assert ends == [*(span.first for span in spans[1:]), spans[-1].of]
    assert parts[0].ids.of == config.vocab_size
    assert parts[0].width * size - config.vocab_size < 64 * size
    assert all(part.width % 64 == 0 and part.first_id == part.ids.first for part in parts)


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32])
def test_each_query_head_finds_its_key_head(size: int) -> None:
    config = parse_config(LLAMA)  # 32 heads, 8 key/value heads
    for part in shards(config, size):
        heads, head_size = part.config.num_heads, config.head_size
        first = part.query.first // head_size
        wanted = {head // 4 for head in range(first, first + heads)}
        start = part.key_value.first // head_size
        assert wanted == set(range(start, start + part.config.num_kv_heads))
        assert part.key_value.count == part.config.num_kv_heads * head_size


def test_a_tiny_vocabulary_leaves_the_last_ranks_without_ids() -> None:
    parts = shards(parse_config(LLAMA | {"vocab_size": 65}), 4)
    assert [part.width for part in parts] == [64] * 4
    assert [part.ids.first for part in parts] == [0, 64, 65, 65]
    assert [part.ids.count for part in parts] == [64, 1, 0, 0]


@pytest.mark.parametrize(
    ("given", "size", "words"),
    [
        (LLAMA, 3, "32 attention heads, 8 key/value heads and intermediate size of 8192; "
         "sizes that work: 1, 2, 4, 8, 16, 32"),
        (LLAMA, 64, "sizes that work: 1, 2, 4, 8, 16, 32"),
        (LLAMA, 0, "--tensor-parallel-size 0 does not divide"),
        (QWEN2, 8, "sizes that work: 1, 2, 4"),  # 28 heads
        (GPT2, 8, "sizes that work: 1, 2, 4, 5, 10, 20"),
        # 7 ranks of 28 heads would hold parts of 4 key/value heads.
        (QWEN2 | {"intermediate_size": 7 * 2048}, 7, "sizes that work: 1, 2, 4"),
        (LLAMA | {"intermediate_size": 8190}, 4, "sizes that work: 1, 2"),
        (LLAMA | {"num_attention_heads": 2**30, "num_key_value_heads": 1}, 3, "1, 2, 4, 8"),
    ],
)  # fmt: skip
def test_what_does_not_divide_is_refused(given: dict[str, Any], size: int, words: str) -> None:
    config = parse_config(given)
    with pytest.raises(InvalidSettings) as caught:
        shard(config, 0, size)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    for works in sizes_that_work(config):
        shard(config, works - 1, works)


def model_of(config: ModelConfig, rank: int, size: int) -> CausalLM:
    """A rank's model without memory, which has sizes all the same."""
    return build_model(
        config, select_ops("cpu"), torch.bfloat16, torch.device("meta"), max_len=2,
        group=Alone(rank, size),
    )  # fmt: skip


def held_bytes(model: CausalLM) -> int:
    """Of all memory behind the model's weights, whatever parts of it they are."""
    views = [piece.view for slot in model.slots().values() for piece in slot.pieces]
    memory = {view.untyped_storage()._cdata: view.untyped_storage().nbytes() for view in views}
    return sum(memory.values())


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_holds_its_part_of_the_weights(config: ModelConfig, size: int) -> None:
    total = weight_bytes(config, "bfloat16")
    for rank in range(size):
        held = held_bytes(model_of(config, rank, size))
        assert total / size * 0.99 < held < total / size * 1.01
        if rank == 0:  # less than one row of a padded head apart
            planned = weight_bytes(config, "bfloat16", size)
            assert abs(held - planned) <= 64 * size * 2 * config.hidden_size
    with pytest.raises(InvalidSettings):
        weight_bytes(config, "bfloat16", 3 * size)


def test_a_shard_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import octavo_server.distributed.shard"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_one_rank_imports_no_torch_distributed() -> None:
    code = (
        "import torch, sys; before = set(sys.modules); "
        "import octavo_server.models.registry, octavo_server.loading.load; "
        "assert 'octavo_server.distributed.torch_group' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
