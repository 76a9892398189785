"""Engines of two and four ranks over gloo give the tokens of one: every family, in float32.

One start of processes a size: its ranks load one model after another.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.server.distributed.shared_ranks import (
    MODELS,
    Answers,
    Shared,
    answers,
    ask,
    load,
    make_models,
    prompts_of,
)
from tests.server.tiny_models import VOCAB_SIZE

from octavo_server import SamplingParams
from octavo_server.engine import build
from octavo_server.engine.messages import Add
from octavo_server.errors import InvalidSettings

# One worker starts the processes.
pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=[2, 4])
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    threads = torch.get_num_threads()
    shared = Shared(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "Workers", lambda size, _: shared)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield shared
    shared.end()
    torch.set_num_threads(threads)


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
