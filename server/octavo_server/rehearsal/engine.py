"""Run an engine's start and one step of every kind, and keep what it launched."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from octavo_kernels.warm import Recorded, recording
from octavo_server.config import EngineConfig
from octavo_server.distributed.group import Alone
from octavo_server.engine.messages import Add
from octavo_server.model_config import ModelConfig
from octavo_server.rehearsal.pretend_gpu import pretend_gpu
from octavo_server.sampling_params import SamplingParams

H100_MULTIPROCESSORS = 132
"""Of the SXM card; launchers split work by it."""

H100_BYTES = 79 << 30

_MOST_STEPS = 64


class Unattended:
    """In the place of `Workers`: nobody is there, and whatever they are told goes well."""

    def __init__(self, size: int, _: Any) -> None:
        self._size = size

    def join(self, _: Any) -> Alone:
        return Alone(0, self._size)

    def smallest_measured(self, own: int) -> int:
        return own

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def rehearse(
    config: EngineConfig,
    progress: Callable[[str], None],
    *,
    capability: int = 90,
    multiprocessors: int = H100_MULTIPROCESSORS,
    memory_bytes: int = H100_BYTES,
) -> Iterator[Recorded]:
    """What an engine of this config launches on such a GPU; reads the model's config only.

    Yields the same growing record twice: after the start, and after a step of every kind. Layers of
    one kind launch the same kernels: two of each stand for all. Raises `StartupError`s as a start
    does.
    """
    with recording(capability) as recorded, pretend_gpu(capability, multiprocessors, memory_bytes):
        from octavo_server.engine import build, rank
        from octavo_server.loading import load
        from octavo_server.loading.describe import read_model_config
        from octavo_server.rehearsal import kernels

        def shortened(source: Any) -> ModelConfig:
            return _two_of_each(read_model_config(source))

        config = dataclasses.replace(config, device="cuda")
        with (
            mock.patch.object(rank, "read_model_config", shortened),
            mock.patch.object(build, "Workers", Unattended),
            mock.patch.object(load, "fill"),
            # A rehearsed start must not start another.
            mock.patch.object(kernels, "prepare", return_value=None),
        ):
            core = build.build_engine(config, progress)
        yield recorded
        for batch in _batches(core.ready.max_model_len, core.ready.vocab_size):
            if failure := _run(core, batch):
                progress(f"not rehearsed: {failure}")
    yield recorded


def _two_of_each(config: ModelConfig) -> ModelConfig:
    windows = list(config.layer_windows)
    kept = [index for index, window in enumerate(windows) if windows[:index].count(window) < 2]
    if not kept:
        kept = list(range(min(2, config.num_layers)))
    return dataclasses.replace(
        config,
        num_layers=len(kept),
        layer_windows=tuple(windows[index] for index in kept if index < len(windows)),
    )


def _run(core: Any, batch: list[Add]) -> str:
    """Run a batch to its end; what went wrong, or ""."""
    for request in batch:
        core.add(request)
    for _ in range(_MOST_STEPS):
        if not core.has_work:
            return ""
        report = core.step()
        if report is not None and (failed := [out.error for out in report.outputs if out.error]):
            return str(failed[0])
    core.abort([request.request_id for request in batch])
    return f"a batch takes more than {_MOST_STEPS} steps"


def _batches(max_len: int, vocab_size: int) -> list[list[Add]]:
    """Requests that run together. Lengths: one, odd and multiples of 16, which Triton tells apart;
    longer than a step takes; of one row and of many.
    """
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"temperature": 0.7, "top_k": 20},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
        {"temperature": 0.7, "presence_penalty": 0.5, "repetition_penalty": 1.1},
        {"temperature": 0.0, "logprobs": 3},
        {"temperature": 0.0, "logit_bias": {0: 1.0}, "min_tokens": 2, "stop_token_ids": [1]},
        {"temperature": 0.0, "prompt_logprobs": 1},
    ]
    lengths = [1, 2, 15, 16, 17, 64, 100, 256, 511, 512, 1000, 1024, 2048, 5000, 10000]
    singles = [(length, kinds[0], 1) for length in lengths]
    pairs = [(33, kind, count) for kind in kinds for count in (1, 2, 3, 16)]
    mixed = [(length, kinds[0], count) for length in (5, 16, 512) for count in (2, 16, 17, 40)]
    number = 0
    batches = []
    for length, kind, count in singles + pairs + mixed:
        batch = []
        for _ in range(count):
            number += 1
            # Ids of its own: a hit in the prefix cache would hide most of the prompt.
            first = number % vocab_size
            prompt = [first, number // vocab_size % vocab_size]
            ids = (prompt + [0] * length)[: max(1, min(length, max_len - 4))]
            params = SamplingParams(max_tokens=3, seed=0, ignore_eos=True, **kind)
            batch.append(Add(f"rehearsed-{number}", ids, params, time.monotonic()))
        batches.append(batch)
    return batches
