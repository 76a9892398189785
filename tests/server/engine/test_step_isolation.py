"""Requests that pass validation and make a step raise: everybody in that step fails with them.

Belongs into tests/server/engine/ (or tests/server/).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from octavo_kernels.ops import SamplingRows
from octavo_kernels.sampling import sample_torch
from octavo_server import LLM, SamplingParams
from octavo_server.engine.messages import Add
from octavo_server.errors import InvalidRequest
from tests.server.tiny_models import VOCAB_SIZE, make_tiny

INNOCENT = SamplingParams(max_tokens=3, temperature=0.0, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama2", tmp_path_factory.mktemp("llama2"))


def load(folder: Path) -> LLM:
    return LLM(
        str(folder), device="cpu", dtype="float32", max_model_len=64, kv_cache_memory_bytes=16 << 20
    )


def finish_reasons(llm: LLM, **params: object) -> dict[str, str | None]:
    """One innocent request and one of these parameters in the same step."""
    eos = {"eos_token_ids": llm._defaults.eos_token_ids}
    odd = SamplingParams(**({"max_tokens": 3, "seed": 1} | eos | params))  # type: ignore[arg-type]
    odd.validate(vocab_size=VOCAB_SIZE, max_logprobs=1000)
    llm.core.add(Add("innocent", [5, 6], INNOCENT, 0.0))
    llm.core.add(Add("odd", [7, 8], odd, 0.0))
    ends: dict[str, str | None] = {}
    while llm.core.has_work:
        report = llm.core.step()
        for output in report.outputs if report else ():
            if output.finish_reason:
                ends[output.request_id] = output.finish_reason
    return ends


def test_an_eos_id_past_the_models_vocabulary_does_not_kill_steps(folder: Path) -> None:
    """A fine-tune whose tokenizer has an EOS that its embedding was never enlarged for."""
    path = folder / "generation_config.json"
    before = path.read_text()
    path.write_text(json.dumps({"eos_token_id": [2, VOCAB_SIZE]}))
    try:
        llm = load(folder)
    finally:
        path.write_text(before)
    assert finish_reasons(llm, min_tokens=2) == {"innocent": "length", "odd": "length"}


def test_logprobs_past_the_vocabulary_are_refused_or_cut(folder: Path) -> None:
    """`--max-logprobs` has no upper bound; topk does."""
    llm = load(folder)
    try:
        ends = finish_reasons(llm, logprobs=VOCAB_SIZE + 1)
    except InvalidRequest:
        return
    assert ends["innocent"] == "length"


@pytest.mark.parametrize("params", [{"top_p": 0.5}, {"top_k": 3}])
def test_banning_the_whole_vocabulary_ends_only_oneself(
    folder: Path, params: dict[str, object]
) -> None:
    llm = load(folder)
    every = list(range(VOCAB_SIZE))
    ends = finish_reasons(llm, stop_token_ids=every, min_tokens=3, **params)
    assert ends["innocent"] == "length"


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("params", [(0, 0.5, 0.0), (3, 1.0, 0.0), (0, 1.0, 0.1)])
def test_a_broken_row_of_logits_does_not_raise(
    value: float, params: tuple[int, float, float]
) -> None:
    """One row of NaN (float16 overflow) must not take the other rows' step with it."""
    logits = torch.randn(2, 50)
    logits[1] = value
    k, p, min_p = params
    state = SamplingRows(
        temperature=torch.ones(2),
        top_k=torch.full((2,), k, dtype=torch.int32),
        top_p=torch.full((2,), p),
        min_p=torch.full((2,), min_p),
        seeds=torch.zeros(2, dtype=torch.int64),
        last_tokens=torch.zeros(2, dtype=torch.int64),
    )
    rows = torch.arange(2, dtype=torch.int32)
    drawn = sample_torch(logits, rows, torch.zeros(2, dtype=torch.int64), state)
    assert (drawn >= 0).all() and (drawn < 50).all()


@pytest.mark.parametrize("temperature", [1e-37, 1e-38, 1e-40, 1e-44])
def test_tiny_temperatures_are_greedy(folder: Path, temperature: float) -> None:
    """logits / temperature is infinite: the first positive logit, or id 0 (EOS here), wins."""
    llm = load(folder)
    params = SamplingParams(max_tokens=4, temperature=temperature, seed=1)
    greedy = SamplingParams(max_tokens=4, temperature=0.0)
    drawn = llm.generate([[5, 6]], params)[0].outputs[0].token_ids
    assert drawn == llm.generate([[5, 6]], greedy)[0].outputs[0].token_ids
