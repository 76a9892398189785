"""A step that finds no memory: its requests end with words of use, the engine goes on."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from octavo_server import LLM, SamplingParams
from octavo_server.config import EngineConfig
from octavo_server.distributed.group import SOLO
from octavo_server.engine import memory
from octavo_server.engine.core import MAX_FAILED_STEPS
from octavo_server.engine.messages import Add, TokenOutput
from octavo_server.errors import EngineDead, OutOfMemory
from octavo_server.models.causal_lm import Batch
from tests.server.tiny_models import make_tiny

TORCH = (
    "CUDA out of memory. Tried to allocate 448.00 MiB. GPU 0 has a total capacity of 79.18 GiB of "
    "which 17.00 MiB is free. See documentation for Memory Management"
)


def run(llm: LLM, name: str) -> list[TokenOutput]:
    llm.core.add(Add(name, [5, 6, 7], SamplingParams(max_tokens=3, temperature=0.0), 0.0))
    found: list[TokenOutput] = []
    while llm.core.has_work:
        report = llm.core.step()
        found += report.outputs if report else ()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama2", tmp_path_factory.mktemp("llama2"))


@pytest.fixture
def llm(folder: Path) -> LLM:
    return load(folder)


def load(folder: Path, **settings: object) -> LLM:
    return LLM(
        str(folder),
        device="cpu",
        dtype="float32",
        max_model_len=64,
        kv_cache_memory_bytes=16 << 20,
        **settings,  # type: ignore[arg-type]
    )


def failing_forward(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> list[weakref.ref[torch.Tensor]]:
    """Every step makes a tensor and fails; returns where those tensors would be."""
    made: list[weakref.ref[torch.Tensor]] = []

    def forward(batch: Batch) -> torch.Tensor:
        activations = torch.ones(1000)
        made.append(weakref.ref(activations))
        raise type(error)(*error.args)

    monkeypatch.setattr(llm.core.runner._model, "forward", forward)
    return made


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError(TORCH), "448.00 MiB were wanted"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "Triton Error"),
        (MemoryError(), "no more was said"),
    ],
    ids=["torch", "triton", "python"],
)
def test_the_engine_outlives_any_number_of_them(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    wanted = [output.token_ids for output in run(llm, "before")]
    with monkeypatch.context() as patched:
        made = failing_forward(llm, patched, error)
        for index in range(MAX_FAILED_STEPS + 2):
            (output,) = run(llm, str(index))
            assert output.finish_reason == "error"
            assert output.error is not None
            assert "ran out of memory" in output.error
            assert words in output.error
            assert "\n" not in output.error
        assert len(made) == MAX_FAILED_STEPS + 2
        assert not any(reference() is not None for reference in made), "held by the error"
    assert [output.token_ids for output in run(llm, "after")] == wanted
    llm.core.scheduler.check_integrity()


def test_offline_only_the_requests_of_that_step_fail(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    llm = load(folder, max_num_seqs=2)
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12], [13, 14]]
    params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    wanted = llm.generate(prompts, params)
    forward = llm.core.runner._model.forward
    calls = 0

    def third_fails(batch: Batch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError(TORCH)
        return forward(batch)

    monkeypatch.setattr(llm.core.runner._model, "forward", third_fails)
    found = llm.generate(prompts, params)
    assert found[2:] == wanted[2:]
    for generation, prompt in zip(found[:2], prompts, strict=False):
        (completion,) = generation.outputs
        assert generation.prompt_token_ids == prompt
        assert completion.finish_reason == "error"
        assert "448.00 MiB were wanted" in (completion.error or "")
    assert [each.outputs[0].error for each in wanted] == [None] * 4
    assert "2 of 4 completions failed" in caplog.text
    assert not llm.core.has_work


def test_other_errors_still_end_it(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_forward(llm, monkeypatch, RuntimeError("CUDA error: misaligned address"))
    for index in range(MAX_FAILED_STEPS - 1):
        (output,) = run(llm, str(index))
        assert "misaligned address" in (output.error or "")
    with pytest.raises(EngineDead):
        run(llm, "last")


def test_a_card_without_room_for_a_context_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init() -> None:
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later")

    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(OutOfMemory, match="free the GPU") as caught:
        memory.foreign_bytes(torch.device("cuda:0"))
    assert "\n" not in str(caught.value)


def test_a_largest_step_that_does_not_fit_is_refused_with_the_terms(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial before the cache is sized: beside a tenant it may be the first that finds none."""
    gib = 1 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (gib, 79 * gib))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 3 * gib)

    def peak(*_: object) -> int:
        raise torch.OutOfMemoryError(TORCH)

    monkeypatch.setattr(memory, "_peak", peak)
    with pytest.raises(OutOfMemory) as caught:
        memory.measure_cache_bytes(
            EngineConfig(model="any"),
            llm.core.runner._model,
            memory.StepBounds(8192, 16, 8192),
            group=SOLO,
            arena=SimpleNamespace(stream=nullcontext, catch_up=lambda: None),  # type: ignore[arg-type]
            device=torch.device("cpu"),
            dtype=torch.float32,
            use_graphs=True,
            foreign=75 * gib,
            progress=lambda _: None,
        )
    text = str(caught.value)
    for part in ("448.00 MiB", "79.0 GiB", "take 3.00", "75.00 were in use before", "free the GPU",
                 "--max-num-batched-tokens"):  # fmt: skip
        assert part in text
    assert "\n" not in text


def test_weights_that_do_not_fit_are_refused_before_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gib = 1 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (2 * gib, 79 * gib))
    gpu = torch.device("cuda:0")
    memory.check_weights_fit(2 * gib, gpu, 77 * gib)
    with pytest.raises(OutOfMemory, match=r"2\.50 GiB, but 2\.00 .* 77\.00 were in use"):
        memory.check_weights_fit(5 * gib // 2, gpu, 77 * gib)
