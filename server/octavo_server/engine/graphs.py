"""CUDA graphs of steps, one per bucket of shapes.

A step of a small model is hundreds of launches of a few microseconds each, and launching costs the
host 6 to 50 each: replayed as a graph the host pays once (measured on an H100: 7.2 us a torch op,
about 48 us a Triton kernel with all its arguments, 0.99 us inside a graph).
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from octavo_kernels.tiles import Sharing
from octavo_server.engine.arena import Arena
from octavo_server.engine.shortage import shortage_in

logger = logging.getLogger(__name__)

MAX_ROWS = 512
"""A decode step of more rows takes so long that launching it costs nothing."""

MAX_TOKENS = 2048
"""Steps with prompts of up to so many tokens have graphs whatever the model."""

LAUNCH_WORK = 14e12
"""Multiplications and additions that an H100 does (600 TFLOP/s) while the host launches one step's
kernels (24 ms, measured): larger steps hide their launches, smaller ones wait for them.
"""

SHARING_ROWS = Sharing().seqs
"""Decode graphs of so many rows come with and without the look for pages that rows share."""

SHORT_QUERY = 1024
"""Prefill attention is cut otherwise where all prompts of a step are at most so long."""


def row_buckets(max_rows: int) -> list[int]:
    """Row counts that graphs are captured for.

    Each costs start-up time, and 0.6 MiB. Up to 64 rows the weights' bytes decide and a few
    more rows are free; beyond, padding costs a third at most, of the products only.
    """
    most = min(max_rows, MAX_ROWS)
    steps = [*(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224), *range(256, 512, 64)]
    return sorted({bucket for bucket in steps if bucket < most} | {most})


def token_buckets(max_tokens: int, layer_weights: int) -> list[int]:
    """Token counts of steps with prompts in them, for a model with so many weights in its layers.

    Beyond `MAX_TOKENS` padding costs milliseconds of computing, so a step must gain as much.
    """
    steps = [16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, MAX_TOKENS]
    most = LAUNCH_WORK / (2 * layer_weights)
    steps += [bucket for bucket in (3072, 4096, 6144, 8192) if bucket <= most]
    return [bucket for bucket in steps if bucket <= max_tokens]


def smallest(buckets: Sequence[int], size: int) -> int | None:
    """The smallest of the ascending buckets that holds `size`; None where there is none."""
    place = bisect.bisect_left(buckets, size)
    return buckets[place] if place < len(buckets) else None


class Graphs:
    """Graphs of `function(*key)`, which returns one tensor and reads and writes fixed memory.

    All lie in one arena: what one leaves free the next one uses, so they are never replayed at the
    same time, and what a replay returned is gone with the next.
    """

    def __init__(self, function: Callable[..., Tensor], arena: Arena, needed: bool = False) -> None:
        """Of `needed` ones a lack of memory is an error."""
        self._function = function
        self._needed = needed
        self._arena = arena
        self._captured: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor] | None] = {}

    def has(self, *key: int) -> bool:
        """Whether `capture` was tried with this key, whatever came of it."""
        return key in self._captured

    def capture(self, *key: int) -> bool:
        """Capture one bucket on the current stream; False, now and later, if memory is short.

        The function runs once for real first, which compiles its kernels.
        NOTE: the caller sees to it that this run changes nothing that matters.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with self._arena.memory():
                self._function(*key)
            # Other threads (weights, heartbeats) may call CUDA meanwhile: only this one's calls
            # count.
            graph.capture_begin(pool=self._arena.pool_id, capture_error_mode="thread_local")
            try:
                result = self._function(*key)
            except BaseException:
                with suppress(RuntimeError):  # which would hide the cause
                    graph.capture_end()
                raise
            graph.capture_end()
        except RuntimeError as error:
            if self._needed or shortage_in(error) is None:
                raise
            logger.warning("no memory for a CUDA graph of %s: its steps run without", key)
            self._captured[key] = None
            return False
        self._captured[key] = (graph, result)
        return True

    def replay(self, *key: int) -> Tensor | None:
        """What the graph returned; None, and nothing was done, if it could not be captured."""
        captured = self._captured[key]
        if captured is None:
            return None
        graph, result = captured
        graph.replay()
        return result
