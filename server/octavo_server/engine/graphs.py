"""CUDA graphs of a decode step, one per bucket of rows.

A step of a small model is hundreds of launches of a few microseconds each, and launching costs the
host 6 to 20 each: replayed as a graph the host pays once (measured on an H100: 7.2 us a torch op,
0.99 us inside a graph).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MAX_BUCKET = 512
"""A step of more rows takes so long that launching it costs nothing."""


def decode_buckets(max_rows: int) -> list[int]:
    """Row counts that graphs are captured for: padding costs at most an eighth from 64 rows on.

    Up to 64 rows the weights' bytes decide and a few more rows are free.
    """
    most = min(max_rows, MAX_BUCKET)
    steps = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, MAX_BUCKET + 1, 32)]
    return sorted({bucket for bucket in steps if bucket < most} | {most})


class DecodeGraphs:
    """Graphs of `function(bucket)`, which returns one tensor and reads and writes fixed memory.

    All live in one pool: memory that one leaves free the next one uses, so they are never replayed
    at the same time, and what a replay returned is gone with the next.
    """

    def __init__(
        self,
        function: Callable[[int], Tensor],
        buckets: Sequence[int],
        pool: Any = None,
    ) -> None:
        self.buckets = sorted(buckets)
        self.pool = pool or torch.cuda.graph_pool_handle()
        self._function = function
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def bucket_of(self, rows: int) -> int | None:
        """The smallest bucket that holds `rows`; None where there is none."""
        place = bisect.bisect_left(self.buckets, rows)
        return self.buckets[place] if place < len(self.buckets) else None

    def has(self, bucket: int) -> bool:
        return bucket in self._captured

    def capture(self, bucket: int) -> None:
        """Capture one bucket. The function runs once for real first, which compiles its kernels.

        NOTE: the caller sees to it that this run changes nothing that matters.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._function(bucket)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Other threads (weights, heartbeats) may call CUDA meanwhile: only this one's calls
            # count.
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                result = self._function(bucket)
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        self._captured[bucket] = (graph, result)

    def replay(self, bucket: int) -> Tensor:
        graph, result = self._captured[bucket]
        graph.replay()
        return result
