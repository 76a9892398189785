"""Greedy output equals transformers', token by token, however the engine came to compute it.

float32, a batch of 8 prompts of mixed lengths, 64 new tokens: plain, with prefix-cache hits, with
chunked prefill, and after preemption.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from benchmarks.dequantise import dequantise
from examples.fetch_demo_model import demo_model

from octavo_server import LLM, SamplingParams
from octavo_server.engine.messages import EngineStats
from octavo_server.llm import Generation
from tests.server.tiny_models import FAMILIES, VOCAB_SIZE, make_tiny

NEW_TOKENS = 64
LENGTHS = (1, 3, 15, 16, 17, 33, 50, 80)  # around the edges of pages of 16
STEM = 48
"""Tokens that all prompts longer than this share: three pages of 16."""


def make_prompts(vocab_size: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    stem = torch.randint(3, vocab_size, (STEM,), generator=generator).tolist()
    return [
        stem[:length]
        + torch.randint(3, vocab_size, (max(0, length - STEM),), generator=generator).tolist()
        for length in LENGTHS
    ]


def reference(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers generates, one prompt at a time (no padding, no ties broken by a batch)."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    outputs = []
    for prompt in prompts:
        with torch.inference_mode():
            ids = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                # min_new_tokens bans EOS ids, ignore_eos does not: no id ends a sequence here.
                eos_token_id=None,
                pad_token_id=0,
            )
        outputs.append(ids[0, len(prompt) :].tolist())
    return outputs


def generate(llm: LLM, prompts: list[list[int]]) -> list[Generation]:
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    return llm.generate(prompts, params)


def tokens(generations: list[Generation]) -> list[list[int]]:
    return [generation.outputs[0].token_ids for generation in generations]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[list[int]], list[list[int]]]:
    folder = make_tiny(request.param, tmp_path_factory.mktemp(request.param))
    prompts = make_prompts(VOCAB_SIZE)
    return folder, prompts, reference(folder, prompts)


def load(folder: Path, **settings: object) -> LLM:
    return LLM(
        str(folder),
        device="cpu",
        dtype="float32",
        max_model_len=256,
        **({"kv_cache_memory_bytes": 32 << 20} | settings),  # type: ignore[arg-type]
    )


def test_cold_then_with_prefix_hits(
    case: tuple[Path, list[list[int]], list[list[int]]],
) -> None:
    folder, prompts, expected = case
    llm = load(folder)
    assert tokens(generate(llm, prompts)) == expected
    again = generate(llm, prompts)
    assert tokens(again) == expected
    assert [each.cached_tokens for each in again] == [0, 0, 0, 0, 16, 32, 48, 64]


def test_without_prefix_cache(case: tuple[Path, list[list[int]], list[list[int]]]) -> None:
    folder, prompts, expected = case
    llm = load(folder, enable_prefix_caching=False, block_size=8)
    for _ in range(2):
        generations = generate(llm, prompts)
        assert tokens(generations) == expected
        assert not any(each.cached_tokens for each in generations)


def test_chunked_prefill(case: tuple[Path, list[list[int]], list[list[int]]]) -> None:
    folder, prompts, expected = case
    llm = load(folder, max_num_batched_tokens=11, max_num_seqs=8)
    assert tokens(generate(llm, prompts)) == expected


def test_after_preemption(case: tuple[Path, list[list[int]], list[list[int]]]) -> None:
    """A pool for two long requests, eight at once: the younger are thrown out and recomputed."""
    folder, prompts, expected = case
    llm = load(folder, num_gpu_blocks_override=1 + 17)
    preemptions = count_preemptions(llm)
    assert tokens(generate(llm, prompts)) == expected
    assert sum(preemptions) >= 3


def test_with_a_step_always_in_flight(
    case: tuple[Path, list[list[int]], list[list[int]]],
) -> None:
    """The next step is launched before the tokens of the last are known: cold, with hits, in
    chunks, and with preemption, for which the engine must wait.
    """
    folder, prompts, expected = case
    llm = load(folder, async_scheduling=True)
    assert tokens(generate(llm, prompts)) == expected
    assert tokens(generate(llm, prompts)) == expected
    llm = load(
        folder,
        async_scheduling=True,
        max_num_batched_tokens=11,
        max_num_seqs=8,
        num_gpu_blocks_override=1 + 17,
    )
    preemptions = count_preemptions(llm)
    assert tokens(generate(llm, prompts)) == expected
    assert sum(preemptions) >= 3


def count_preemptions(llm: LLM) -> list[int]:
    """A list that gets the number of preemptions of each step from now on."""
    counts: list[int] = []
    take_stats = llm.core.scheduler.take_stats

    def take_and_count() -> EngineStats:
        stats = take_stats()
        counts.append(stats.preemptions)
        return stats

    llm.core.scheduler.take_stats = take_and_count  # type: ignore[method-assign]
    return counts


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The demo model with its weights expanded to float32, so that both sides load the same
    numbers.
    """
    return dequantise(demo_model(), "float32")


def test_smollm2(smollm2: Path) -> None:
    """The demo model on real prompts: cold, with hits, and, from the .gguf file itself, with
    chunked prefill and preemption.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    texts = (
        "The capital of France is",
        "Tell me about efficient GPU utilization",
        "Once upon a time, in a land far away,",
        "def fibonacci(n):",
        "1, 1, 2, 3, 5, 8,",
        "Q: Why is the sky blue?\nA:",
        "A",
        "Octavo turns a manifest into pods. " * 8,
    )
    prompts = [tokenizer.encode(text) for text in texts]
    llm = LLM(str(smollm2), device="cpu", dtype="float32", max_model_len=512)
    outputs = tokens(generate(llm, prompts))
    assert outputs == greedy_after(smollm2, prompts, outputs)
    again = generate(llm, prompts)
    assert tokens(again) == outputs
    assert again[-1].cached_tokens >= 48
    pressed = LLM(
        str(demo_model()),
        device="cpu",
        dtype="float32",
        max_model_len=256,
        max_num_batched_tokens=13,
        num_gpu_blocks_override=1 + 17,
    )
    preemptions = count_preemptions(pressed)
    assert tokens(generate(pressed, prompts)) == outputs
    assert sum(preemptions) >= 1


def greedy_after(
    folder: Path, prompts: list[list[int]], outputs: list[list[int]]
) -> list[list[int]]:
    """transformers' choice after each prefix of prompt + output, from one forward pass a prompt.

    If it equals the output everywhere, then by induction it is what `generate` would have given,
    for a hundredth of the time.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    choices = []
    for prompt, output in zip(prompts, outputs, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + output])).logits[0]
        choices.append(logits[len(prompt) - 1 : -1].argmax(-1).tolist())
    return choices
