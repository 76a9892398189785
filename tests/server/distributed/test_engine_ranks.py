"""Engines of two and four ranks over gloo give the tokens of one: every family, in float32.

One start of processes a size: its ranks load one model after another.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.server.tiny_models import VOCAB_SIZE, make_tiny

from octavo_server import LLM, SamplingParams
from octavo_server.distributed.group import Group
from octavo_server.distributed.workers import Workers
from octavo_server.engine import build
from octavo_server.engine.messages import Add, EngineStats
from octavo_server.errors import InvalidSettings

# One worker starts the processes.
pytestmark = pytest.mark.xdist_group("ranks")

NEW_TOKENS = 12
# Odd vocabularies and biases; key heads for fewer than all ranks; six heads: two ranks, not four.
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "gpt2": ("gpt2", {"vocab_size": 391}),
    "llama-biased": ("llama3", {"attention_bias": True, "mlp_bias": True, "vocab_size": 389}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"vocab_size": 389}),
    "smollm2": ("smollm2", {}),
    "tinyllama": ("tinyllama", {}),
}
Answers = dict[str, list[list[int]]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, (family, changes) in MODELS.items():
        make_tiny(family, folder / name, **changes)
    return folder


class Shared:
    """One start of workers for engine after engine: `close` of an engine leaves them there."""

    def __init__(self, size: int) -> None:
        self.size, self.workers = size, Workers(size)
        self._group: Group | None = None
        self._told = False

    def start(self) -> None:
        if not self._told:
            self.workers.start()
            self._told = True

    def join(self, device: torch.device) -> Group:
        if self._group is None:
            self._group = self.workers.join(device)
        else:
            self.workers._answers_of_all()
        return self._group

    def close(self, _: object = None) -> None:
        pass

    def end(self) -> None:
        self.workers.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.workers, name)


@pytest.fixture(scope="module", params=[2, 4])
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    threads = torch.get_num_threads()
    shared = Shared(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "start_workers", lambda size, _: shared)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield shared
    shared.end()
    torch.set_num_threads(threads)


def load(folder: Path, size: int, **settings: object) -> LLM:
    return LLM(
        str(folder), device="cpu", dtype="float32", tensor_parallel_size=size,
        **({"max_model_len": 96, "kv_cache_memory_bytes": 16 << 20} | settings),  # type: ignore[arg-type]
    )  # fmt: skip


def prompts_of(vocab_size: int) -> list[list[int]]:
    """Lengths around pages of 16; the longer ones share two pages."""
    generator = torch.Generator().manual_seed(3)
    stem = torch.randint(3, vocab_size, (32,), generator=generator).tolist()
    return [
        stem[:length]
        + torch.randint(3, vocab_size, (max(0, length - 32),), generator=generator).tolist()
        for length in (1, 16, 17, 40, 45)
    ]


def ask(llm: LLM, prompts: list[list[int]], **params: object) -> list[list[int]]:
    settings = {"max_tokens": NEW_TOKENS, "ignore_eos": True, "seed": 11, "temperature": 0.0}
    asked = SamplingParams(**(settings | params))  # type: ignore[arg-type]
    return [generation.outputs[0].token_ids for generation in llm.generate(prompts, asked)]


def stats_of(llm: LLM) -> list[EngineStats]:
    """All that its scheduler will report."""
    seen: list[EngineStats] = []
    take = llm.core.scheduler.take_stats

    def take_and_keep() -> EngineStats:
        seen.append(take())
        return seen[-1]

    llm.core.scheduler.take_stats = take_and_keep  # type: ignore[method-assign]
    return seen


def answers(folder: Path, size: int) -> Answers:
    """What an engine says: plain, with hits in the prefix cache, seeded, filtered, penalised; and
    another with so few pages that rows are preempted, and so few tokens a step that prompts come in
    chunks.
    """
    prompts = prompts_of(384)
    llm = load(folder, size)
    seen = stats_of(llm)
    found = {"cold": ask(llm, prompts)}
    before = sum(stats.prefix_cache_hits for stats in seen)
    found["warm"] = ask(llm, prompts)
    assert sum(stats.prefix_cache_hits for stats in seen) - before >= 2 * 32
    found["drawn"] = ask(llm, prompts, temperature=0.8)
    found["filtered"] = ask(llm, prompts, temperature=0.8, top_k=20, top_p=0.9)
    found["penalised"] = ask(llm, prompts[:2], temperature=0.8, frequency_penalty=0.7, logprobs=2)
    llm.close()
    tight = load(folder, size, num_gpu_blocks_override=1 + 6, max_num_batched_tokens=24)
    seen = stats_of(tight)
    found["pressed"] = ask(tight, prompts)
    assert sum(stats.preemptions for stats in seen) > 0
    assert tight.core.scheduler.pool.usage == 0.0
    tight.close()
    return found


@pytest.fixture(scope="module")
def alone(models: Path) -> dict[str, Answers]:
    return {name: answers(models / name, 1) for name in MODELS}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_tokens_are_those_of_one_rank(
    name: str, models: Path, alone: dict[str, Answers], shared: Shared
) -> None:
    if shared.size == 4 and name == "smollm2":
        with pytest.raises(InvalidSettings, match="sizes that work: 1, 2, 6"):
            load(models / name, 4)
        return
    one = alone[name]
    assert one["cold"] == one["warm"] == one["pressed"] != one["drawn"]
    assert answers(models / name, shared.size) == one


def test_logprobs_and_aborts(models: Path, shared: Shared) -> None:
    prompts = prompts_of(VOCAB_SIZE)[3:]
    params = SamplingParams(
        max_tokens=4, temperature=0.0, logprobs=3, prompt_logprobs=2, ignore_eos=True
    )
    one = load(models / "qwen2", 1).generate(prompts, params)
    llm = load(models / "qwen2", shared.size)
    for mine, expected in zip(llm.generate(prompts, params), one, strict=True):
        pairs = zip(
            [*mine.prompt_logprobs[1:], *mine.outputs[0].logprobs],
            [*expected.prompt_logprobs[1:], *expected.outputs[0].logprobs],
            strict=True,
        )
        for entry, wanted in pairs:
            assert (entry.token_id, entry.rank) == (wanted.token_id, wanted.rank)
            assert entry.logprob == pytest.approx(wanted.logprob, abs=1e-3)
            assert entry.top_ids == wanted.top_ids
    # Rows that are gone in the middle of things, and others in their place.
    long = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    for number in range(3):
        llm.core.add(Add(f"gone-{number}", prompts[0], long, time.monotonic()))
    for _ in range(5):
        llm.core.step()
    llm.core.abort([f"gone-{number}" for number in range(3)])
    assert ask(llm, prompts) == ask(load(models / "qwen2", 1), prompts)
    llm.close()
