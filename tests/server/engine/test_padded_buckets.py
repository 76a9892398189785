"""Decode steps padded to a bucket, as CUDA graphs run them, give the tokens of exact steps.

The graphs themselves need a GPU (tests/gpu/test_engine.py); what they replay does not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from octavo_server import LLM, SamplingParams
from octavo_server.engine.graphs import row_buckets, smallest, token_buckets
from octavo_server.engine.runner import Runner
from tests.server.tiny_models import VOCAB_SIZE, make_tiny


class Replayed:
    """Calls the function where a graph would be replayed."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.calls: list[tuple[int, ...]] = []
        self._function = function

    def has(self, *key: int) -> bool:
        return True

    def replay(self, *key: int) -> Tensor:
        self.calls.append(key)
        return self._function(*key)


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
@pytest.mark.parametrize("overlap", [False, True])
def test_padding_changes_no_token(family: str, overlap: bool, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path)
    llm = LLM(
        str(folder),
        device="cpu",
        dtype="float32",
        max_model_len=128,
        max_num_seqs=8,
        kv_cache_memory_bytes=16 << 20,
        async_scheduling=overlap,
    )
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist() for n in (3, 20, 9)]
    asked = (
        SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True),
        SamplingParams(max_tokens=12, temperature=0.9, top_k=40, seed=8, ignore_eos=True),
        SamplingParams(max_tokens=12, temperature=0.0, repetition_penalty=1.2, logprobs=2,
                       ignore_eos=True),
    )  # fmt: skip

    def run() -> list[list[list[int]]]:
        return [
            [generation.outputs[0].token_ids for generation in llm.generate(prompts, params)]
            for params in asked
        ]

    expected = run()
    runner = llm.core.runner
    assert isinstance(runner, Runner)
    runner._row_buckets, runner._token_buckets = [2, 5, 8], [40, 64]
    graphs = SimpleNamespace(
        whole=Replayed(runner._decode_and_draw),
        decode=Replayed(runner._decode),
        mixed=Replayed(runner._mixed),
        head=Replayed(runner._draw_last),
    )
    runner._graphs = graphs  # type: ignore[assignment]
    assert run() == expected
    # 12 tokens: one from the prompts' step of 32 tokens, the rest from 3 rows padded to 5.
    assert graphs.whole.calls.count((5, 128, False, 0)) >= 2 * 10
    assert graphs.decode.calls.count((5, 128)) >= 10
    assert graphs.mixed.calls == 3 * [(40, 8, 40)]
    assert graphs.head.calls.count((5, 0)) == 2


def test_more_sequences_than_the_largest_bucket(tmp_path: Path) -> None:
    """A step with prompts of more rows than graphs provide for (--max-num-seqs above 512)."""
    llm = LLM(
        str(make_tiny("llama2", tmp_path)),
        device="cpu",
        dtype="float32",
        max_model_len=64,
        max_num_seqs=8,
        kv_cache_memory_bytes=16 << 20,
    )
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, VOCAB_SIZE, (4,), generator=generator).tolist() for _ in range(8)]
    params = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)

    def run() -> list[list[int]]:
        return [generation.outputs[0].token_ids for generation in llm.generate(prompts, params)]

    expected = run()
    runner = llm.core.runner
    assert isinstance(runner, Runner)
    runner._row_buckets, runner._token_buckets = [2, 5], [16, 64]
    runner._graphs = SimpleNamespace(  # type: ignore[assignment]
        whole=Replayed(runner._decode_and_draw),
        decode=Replayed(runner._decode),
        mixed=Replayed(runner._mixed),
        head=Replayed(runner._draw_last),
    )
    assert run() == expected


def test_buckets_cover_every_size_with_bounded_padding() -> None:
    rows = row_buckets(512)
    assert rows[0] == 1 and rows[-1] == 512 and row_buckets(5) == [1, 2, 4, 5]
    for size in range(1, 513):
        assert smallest(rows, size) <= max(size * 4 / 3 + 16, 2 * size if size < 8 else 0)
    small, large = token_buckets(8192, 440_000_000), token_buckets(8192, 7_000_000_000)
    for size in range(16, 2049):
        assert smallest(small, size) == smallest(large, size) <= 2 * size
    # What a large model computes for a while needs no graph, and no padding.
    assert small[-1] == 8192 and large[-1] == 2048
    assert smallest(rows, 513) is None and token_buckets(40, 1) == [16, 32]
