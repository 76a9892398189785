"""A real model's real answer on the GPU: SmolLM2-135M-Instruct, the demo's.

OCTAVO_DEMO_MODEL is the .gguf file; without it the one that `make model` fetched is taken.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from benchmarks.dequantise import dequantise
from examples.fetch_demo_model import FOLDER, MEMBER
from tests.server.test_greedy_equals_transformers import greedy_after

from octavo_server import LLM, SamplingParams
from octavo_server.llm import Completion

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; torch sees none"),
]

QUESTION = "What is the capital of France?"  # as in examples/demo.py
COMPARED = 10
BEGUN = 5
TIE = 0.3
"""Log probability by which bfloat16 may prefer another id than float32 does: its weights and
activations are rounded to 3 digits, and this answer's first word wins by 0.08 only."""


@pytest.fixture(scope="module")
def model() -> Path:
    stated = os.environ.get("OCTAVO_DEMO_MODEL")
    path = Path(stated) if stated else FOLDER / Path(MEMBER).name
    if not path.is_file():
        pytest.skip(f"{path} is not there: set OCTAVO_DEMO_MODEL or run `make model`")
    return path


def answers(
    model: Path, dtype: str, said: list[int] | None = None
) -> tuple[list[int], Completion, Completion]:
    """The prompt, its answer after the ids `said`, and what comes then when no id ends it."""
    llm = LLM(
        str(model),
        device="cuda",
        dtype=dtype,
        max_model_len=256,
        max_num_seqs=4,
        kv_cache_memory_bytes=64 << 20,
    )
    messages = [{"role": "user", "content": QUESTION}]
    encoded = llm.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    prompt = list(encoded if isinstance(encoded, list) else encoded["input_ids"])
    prompt += said or []
    params = SamplingParams(temperature=0.0, max_tokens=32)
    free = SamplingParams(temperature=0.0, max_tokens=COMPARED, ignore_eos=True, logprobs=5)
    answer, further = (llm.generate([prompt], each)[0].outputs[0] for each in (params, free))
    return prompt, answer, further


def test_answers_the_demos_question(model: Path, tmp_path: Path) -> None:
    prompt, exact_answer, exact = answers(model, "float32")
    beside = tmp_path / model.name  # where transformers' copy of the weights goes
    beside.symlink_to(model.resolve())
    folder = dequantise(beside, "float32")
    assert [exact.token_ids] == greedy_after(folder, [prompt], [exact.token_ids])
    assert "Paris" in exact_answer.text
    assert exact_answer.finish_reason == "stop"
    _, answer, rounded = answers(model, "bfloat16")
    print(f"float32: {exact_answer.text!r}; bfloat16: {answer.text!r}")
    assert exact.logprobs is not None
    for place, (wanted, found) in enumerate(zip(exact.token_ids, rounded.token_ids, strict=True)):
        if found != wanted:
            judged = exact.logprobs[place]
            best = dict(zip(judged.top_ids, judged.top_logprobs, strict=True))
            assert found in best, f"token {place}: {found} is far from {wanted}"
            assert best[wanted] - best[found] < TIE, f"token {place}"
            break  # from here on the texts differ
    # Begun as in float32, "The capital of France is", it names the city in bfloat16 too.
    _, answer, _ = answers(model, "bfloat16", exact.token_ids[:BEGUN])
    assert answer.text.split()[0].strip(".") == "Paris"
