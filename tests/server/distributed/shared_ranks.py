"""Engines of several ranks in the test's process: one start of the others for model after model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.server.tiny_models import make_tiny

from octavo_server import LLM, SamplingParams
from octavo_server.distributed.group import Group
from octavo_server.distributed.workers import Workers
from octavo_server.engine.messages import EngineStats

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


def make_models(folder: Path) -> Path:
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

    def close(self, *, orderly: bool = True) -> None:
        pass

    def end(self) -> None:
        self.workers.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.workers, name)


DEFAULTS: dict[str, object] = {
    "device": "cpu", "dtype": "float32", "max_model_len": 96, "kv_cache_memory_bytes": 16 << 20,
}  # fmt: skip


def load(folder: Path, size: int, **settings: object) -> LLM:
    return LLM(
        str(folder),
        **(DEFAULTS | {"tensor_parallel_size": size} | settings),  # type: ignore[arg-type]
    )


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


def answers(folder: Path, size: int, **settings: object) -> Answers:
    """What an engine says: plain, with hits in the prefix cache, seeded, filtered, penalised; and
    another with so few pages that rows are preempted, and so few tokens a step that prompts come in
    chunks.
    """
    prompts = prompts_of(384)
    llm = load(folder, size, **settings)
    seen = stats_of(llm)
    found = {"cold": ask(llm, prompts)}
    before = sum(stats.prefix_cache_hits for stats in seen)
    found["warm"] = ask(llm, prompts)
    assert sum(stats.prefix_cache_hits for stats in seen) - before >= 2 * 32
    found["drawn"] = ask(llm, prompts, temperature=0.8)
    found["filtered"] = ask(llm, prompts, temperature=0.8, top_k=20, top_p=0.9)
    found["penalised"] = ask(llm, prompts[:2], temperature=0.8, frequency_penalty=0.7, logprobs=2)
    llm.close()
    few = {"num_gpu_blocks_override": 1 + 6, "max_num_batched_tokens": 24}
    tight = load(folder, size, **(settings | few))
    seen = stats_of(tight)
    found["pressed"] = ask(tight, prompts)
    assert sum(stats.preemptions for stats in seen) > 0
    assert tight.core.scheduler.pool.usage == 0.0
    tight.close()
    return found
