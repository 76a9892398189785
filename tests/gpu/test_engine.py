"""The engine on a GPU, against transformers on the same GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.gpu.best_five import check_greedy
from tests.server.test_greedy_equals_transformers import (
    LENGTHS,
    make_prompts,
    reference,
    tokens,
)
from tests.server.tiny_models import FAMILIES, VOCAB_SIZE, make_tiny

from octavo_server import LLM, SamplingParams
from octavo_server.engine.messages import Add, EngineStats

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; torch sees none"),
]

NEW_TOKENS = 64


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(request.param, tmp_path_factory.mktemp(request.param))


def load(folder: Path, dtype: str, **settings: object) -> LLM:
    return LLM(
        str(folder),
        device="cuda",
        dtype=dtype,
        max_model_len=256,
        # Few rows: their graphs are captured at every start.
        **({"kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 16} | settings),  # type: ignore[arg-type]
    )


def watch(llm: LLM) -> list[EngineStats]:
    """A list that gets the statistics of every report from now on."""
    found: list[EngineStats] = []
    take_stats = llm.core.scheduler.take_stats

    def take_and_keep() -> EngineStats:
        found.append(take_stats())
        return found[-1]

    llm.core.scheduler.take_stats = take_and_keep  # type: ignore[method-assign]
    return found


def generate(llm: LLM, prompts: list[list[int]], **params: object) -> list[list[int]]:
    settings = {"temperature": 0.0, "max_tokens": NEW_TOKENS, "ignore_eos": True} | params
    return tokens(llm.generate(prompts, SamplingParams(**settings)))  # type: ignore[arg-type]


def test_float32_equals_transformers(folder: Path) -> None:
    """Plain, warm, chunked and preempted; the reference runs on CPU in float32 as in the other
    tests.
    """
    prompts = make_prompts(VOCAB_SIZE)
    expected = reference(folder, prompts)
    llm = load(folder, "float32")
    assert generate(llm, prompts) == expected
    assert generate(llm, prompts) == expected
    chunked = load(folder, "float32", max_num_batched_tokens=11, max_num_seqs=8)
    assert generate(chunked, prompts) == expected
    pressed = load(folder, "float32", num_gpu_blocks_override=1 + 17)
    stats = watch(pressed)
    assert generate(pressed, prompts) == expected
    assert sum(each.preemptions for each in stats) >= 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_agrees_up_to_ties(folder: Path, dtype: str) -> None:
    prompts = make_prompts(VOCAB_SIZE)
    outputs = generate(load(folder, dtype), prompts)
    assert [len(output) for output in outputs] == [NEW_TOKENS] * len(LENGTHS)
    check_greedy(folder, dtype, prompts, outputs)


REQUESTS = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "seed": 4},
    {"temperature": 1.2, "min_p": 0.05, "seed": 5},
    {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"temperature": 0.7, "frequency_penalty": 0.8, "seed": 6, "logprobs": 3},
    {
        "temperature": 0.9,
        "seed": 9,
        "logit_bias": {5: 4.0, 9: -100.0},
        "logprobs": 0,
        "allowed_token_ids": list(range(3, 30)),
        "bad_words_token_ids": [[7], *([i, 5] for i in range(3, 20)), [5, 11, 12]],
    },
    {"temperature": 1.0, "seed": 7, "min_tokens": 20, "stop_token_ids": list(range(2, 60))},
]


def run_mixed(llm: LLM, prompts: list[list[int]]) -> list[tuple[list[int], str | None]]:
    """Every prompt with parameters of its own, all in the engine at once."""
    found: dict[str, list[int]] = {}
    ends: dict[str, str | None] = {}
    for index, (prompt, asked) in enumerate(zip(prompts, REQUESTS, strict=True)):
        settings = {"max_tokens": NEW_TOKENS, "ignore_eos": True, "seed": 0} | asked
        params = SamplingParams(**settings)  # type: ignore[arg-type]
        llm.core.add(Add(str(index), prompt, params, 0.0))
        found[str(index)] = []
    while llm.core.has_work:
        report = llm.core.step()
        for output in report.outputs if report else ():
            found[output.request_id] += output.token_ids
            ends[output.request_id] = output.finish_reason
    return [(found[name], ends[name]) for name in found]


def test_graphs_overlap_hits_chunks_and_preemption_change_no_token(folder: Path) -> None:
    """float32, one request for each kind of sampling; seeds included."""
    prompts = make_prompts(VOCAB_SIZE)
    plain = load(folder, "float32", enforce_eager=True, async_scheduling=False)
    expected = run_mixed(plain, prompts)
    assert any(end == "stop" for _, end in expected)
    for settings in (
        {},
        {"enforce_eager": True},
        {"async_scheduling": False},
        {"enable_prefix_caching": False},
        {"max_num_batched_tokens": 11, "max_num_seqs": 8},
        {"num_gpu_blocks_override": 1 + 17},
    ):
        llm = load(folder, "float32", **settings)
        assert llm.core.runner.has_graphs == ("enforce_eager" not in settings)
        stats = watch(llm)
        for _ in range(2):  # the second finds the first's prefixes
            assert run_mixed(llm, prompts) == expected, settings
        hits = sum(each.prefix_cache_hits for each in stats)
        assert (hits > 0) == settings.get("enable_prefix_caching", True)
        if "num_gpu_blocks_override" in settings:
            assert sum(each.preemptions for each in stats) >= 3


def test_a_seed_gives_the_same_tokens_alone_and_in_a_crowd(folder: Path) -> None:
    llm = load(folder, "float32")
    prompts = make_prompts(VOCAB_SIZE)
    wanted = {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": 11}
    crowd = generate(llm, prompts, **wanted)
    assert [generate(llm, [prompt], **wanted)[0] for prompt in prompts] == crowd


def test_more_sequences_than_graphs_provide_for(tmp_path: Path) -> None:
    """700 prompts of a few tokens fit into one step, and into no graph."""
    folder = make_tiny("qwen3", tmp_path / "tiny")
    prompts = [[3 + i % 300, 5 + i // 300][: 1 + i % 2] for i in range(700)]
    settings = {"max_num_seqs": 1024, "max_num_batched_tokens": 2048}
    eager = load(folder, "float32", enforce_eager=True, **settings)
    expected = generate(eager, prompts, max_tokens=4)
    assert generate(load(folder, "float32", **settings), prompts, max_tokens=4) == expected
