"""Decode steps padded to a bucket, as CUDA graphs run them, give the tokens of exact steps.

The graphs themselves need a GPU (tests/gpu/test_engine.py); what they replay does not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo_server import LLM, SamplingParams
from octavo_server.engine.graphs import DecodeGraphs, decode_buckets
from octavo_server.engine.runner import Runner
from tests.server.tiny_models import VOCAB_SIZE, make_tiny


class Replayed(DecodeGraphs):
    """Calls the function where a graph would be replayed."""

    def __init__(self, function: Callable[[int], Tensor], buckets: list[int]) -> None:
        self.buckets = buckets
        self.calls: list[int] = []
        self._function = function
        self._captured: dict[int, Any] = dict.fromkeys(buckets)

    def replay(self, bucket: int) -> Tensor:
        self.calls.append(bucket)
        return self._function(bucket)


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
    runner._whole = Replayed(runner._decode_and_draw, [2, 5])
    runner._forward = Replayed(runner._decode, [2, 5])
    assert run() == expected
    # 12 tokens: one from the prompt's step, the rest padded from 3 rows to 5.
    assert runner._whole.calls.count(5) >= 2 * 11
    assert runner._forward.calls.count(5) >= 11


def test_buckets_cover_every_row_count_with_little_padding() -> None:
    buckets = decode_buckets(512)
    assert buckets[0] == 1 and buckets[-1] == 512
    for rows in range(64, 513):
        bucket = next(bucket for bucket in buckets if bucket >= rows)
        assert bucket - rows < max(16, rows / 8)
    assert decode_buckets(5) == [1, 2, 4, 5]
