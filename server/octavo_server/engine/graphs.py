"""CUDA graphs of steps, one per bucket of shapes.

A step of a small model is hundreds of launches of a few microseconds each, and launching costs the
host 6 to 50 each: replayed as a graph the host pays once (measured on an H100: 7.2 us a torch op,
about 48 us a Triton kernel with all its arguments, 0.99 us inside a graph).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MAX_ROWS = 512
"""A decode step of more rows takes so long that launching it costs nothing."""

MAX_TOKENS = 2048
"""Likewise for a step with prompts in it, whose launches take the host about 14 ms."""


def row_buckets(max_rows: int) -> list[int]:
    """Row counts that graphs are captured for.

    Each costs start-up time and about 12 MiB. Up to 64 rows the weights' bytes decide and a few
    more rows are free; beyond, padding costs a third at most, of the products only.
    """
    most = min(max_rows, MAX_ROWS)
    steps = [*(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224), *range(256, 512, 64)]
    return sorted({bucket for bucket in steps if bucket < most} | {most})


def token_buckets(max_tokens: int) -> list[int]:
    """Token counts of steps with prompts in them."""
    steps = [16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, MAX_TOKENS]
    return [bucket for bucket in steps if bucket <= max_tokens]


def smallest(buckets: Sequence[int], size: int) -> int | None:
    """The smallest of the ascending buckets that holds `size`; None where there is none."""
    place = bisect.bisect_left(buckets, size)
    return buckets[place] if place < len(buckets) else None


class Graphs:
    """Graphs of `function(*key)`, which returns one tensor and reads and writes fixed memory.

    All that share a pool live in one memory: what one leaves free the next one uses, so they are
    never replayed at the same time, and what a replay returned is gone with the next.
    """

    def __init__(self, function: Callable[..., Tensor], pool: Any) -> None:
        self._function = function
        self._pool = pool
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._captured: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def has(self, *key: int) -> bool:
        return key in self._captured

    def capture(self, *key: int) -> None:
        """Capture one bucket. The function runs once for real first, which compiles its kernels.

        NOTE: the caller sees to it that this run changes nothing that matters.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._function(*key)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Other threads (weights, heartbeats) may call CUDA meanwhile: only this one's calls
            # count.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = self._function(*key)
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        self._captured[key] = (graph, result)

    def replay(self, *key: int) -> Tensor:
        graph, result = self._captured[key]
        graph.replay()
        return result
