"""How kernel benchmarks time: launches inside one CUDA graph, so that the host does not count."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

REPEATS = 7


def graph_microseconds(launch: Callable[[int], object], launches: int = 24) -> float:
    """Median microseconds of one `launch(index)`, index counting up from 0: callers rotate their
    inputs by it, past the L2 cache."""
    for index in range(2):  # compiles
        launch(index)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(launches):
            launch(index)
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / launches)
    return statistics.median(times)
