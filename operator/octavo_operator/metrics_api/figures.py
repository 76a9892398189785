"""The metrics that are served, and how a service's is made of its pods'. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from octavo_operator.metrics_api.tracks import Sample

QUEUE_DEPTH = "octavo_queue_depth"
RUNNING = "octavo_running"
DEMAND = "octavo_demand"
QUEUE_WAIT_SECONDS = "octavo_queue_wait_seconds"
KV_CACHE_USAGE = "octavo_kv_cache_usage"


@dataclass(frozen=True, slots=True)
class Figure:
    """`of` gives a pod's, None where the pod cannot tell. A service's is the sum of its pods', or
    what a request finds at one of them: their mean.
    """

    name: str
    of: Callable[[Sample], float | None]
    summed: bool

    def join(self, values: Sequence[float], serving: int) -> float:
        """`serving`: how many pods requests may go to, those that say nothing included."""
        if self.summed:
            return sum(values)
        return sum(values) / serving if serving else 0.0


FIGURES = {
    each.name: each
    for each in (
        Figure(QUEUE_DEPTH, lambda sample: sample.load.waiting, summed=True),
        Figure(RUNNING, lambda sample: sample.load.running, summed=True),
        # Held requests will be added here: no pod knows of them.
        Figure(DEMAND, lambda sample: sample.load.waiting + sample.load.running, summed=True),
        Figure(QUEUE_WAIT_SECONDS, lambda sample: sample.wait_seconds, summed=False),
        Figure(KV_CACHE_USAGE, lambda sample: sample.load.kv_cache_usage, summed=False),
    )
}
