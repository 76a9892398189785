"""Models with weights N(0, 0.02), as freshly initialised ones have: nearly flat logits.

tests/gpu/test_engine.py has weights whose output is more varied; here the best ids are close to
each other, so a small error shows: float32 must still agree with transformers in every token
(on the CPU, which knows no TF32), bfloat16 must stay among the best five, both ways.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.gpu.best_five import TOP, best_ids
from tests.server.test_greedy_equals_transformers import make_prompts, reference, tokens
from tests.server.tiny_models import FAMILIES, VOCAB_SIZE, tiny_model, write_tokenizer

from octavo_server import LLM, SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; torch sees none"),
]

DEVICE = "cuda"
NEW_TOKENS = 64
DEVIATION = 0.02


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model(request.param)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator) * DEVIATION
            is_norm = weight.ndim == 1 and name.endswith("weight")
            weight.copy_(noise + 1.0 if is_norm else noise)
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    write_tokenizer(path)
    return path


def load(folder: Path, dtype: str) -> LLM:
    return LLM(
        str(folder),
        device=DEVICE,
        dtype=dtype,
        max_model_len=256,
        max_num_seqs=16,
        kv_cache_memory_bytes=64 << 20,
    )


def test_float32_equals_transformers(folder: Path) -> None:
    assert not torch.backends.cuda.matmul.allow_tf32
    prompts = make_prompts(VOCAB_SIZE)
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    found = tokens(load(folder, "float32").generate(prompts, params))
    assert found == reference(folder, prompts)


def test_bfloat16_is_among_the_best_five_both_ways(folder: Path) -> None:
    """Each id that Octavo chose is among transformers' best five after the same text, and the one
    that transformers would have chosen is among Octavo's.
    """
    prompts = make_prompts(VOCAB_SIZE)
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=TOP)
    generations = load(folder, "bfloat16").generate(prompts, params)
    answers = [generation.outputs[0] for generation in generations]
    best = best_ids(folder, "bfloat16", prompts, tokens(generations), DEVICE)
    for choices, answer in zip(best, answers, strict=True):
        assert answer.logprobs is not None
        for theirs, token_id, ours in zip(choices, answer.token_ids, answer.logprobs, strict=True):
            assert token_id in theirs
            assert theirs[0] in ours.top_ids
