"""Where steps run on a GPU: one stream, and one memory that graphs and eager steps share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Arena:
    """One stream for all steps, one pool for what a step makes and drops.

    A graph keeps the addresses that it was captured with, so whatever else lies there must be
    gone when it is replayed: everything in the pool ends with its step, and the stream puts the
    steps in order. Shared, llama-8b's activations are held once (0.5 GiB) and not once for eager
    steps and once for each kind of graph (1.3 GiB for 50 graphs, whose own memory is 28 MiB).

    NOTE: what outlives a step must not be made in `memory`, or a replay writes over it: the
    counters of kernels are made by the runner (`make_counters`); a library's workspace may lie
    there, whose contents end with the call.
    """

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.MemPool()

    @property
    def pool_id(self) -> Any:
        return self._pool.id

    def reserve(self, size: int) -> None:
        """Take `size` bytes at once: one piece is cut for every step, many would not fit all."""
        with self.stream(), self.memory():
            torch.empty(size, dtype=torch.uint8, device="cuda")

    def catch_up(self) -> None:
        """What is given to the arena's stream from now on comes behind what the caller's has.

        Once, behind what steps find ready (weights, buffers): every step would pay 21 us for it.
        """
        self._stream.wait_stream(torch.cuda.current_stream())

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Work goes to the arena's stream."""
        with torch.cuda.stream(self._stream):
            yield

    @contextmanager
    def memory(self) -> Iterator[None]:
        """Tensors are made in the pool. Not around a capture, which names the pool itself."""
        with torch.cuda.use_mem_pool(self._pool):
            yield
