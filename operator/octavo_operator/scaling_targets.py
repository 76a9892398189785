"""Which figures of a service its autoscaler compares, and with what. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from octavo_operator.autoscaling import DEFAULT_QUEUE_DEPTH
from octavo_operator.metrics_api.figures import DEMAND, QUEUE_DEPTH, QUEUE_WAIT_SECONDS
from octavo_operator.spec import InferenceService

DEFAULT_SLOTS = 512
"""What the server runs at a time where engine.maxNumSeqs says nothing."""

FULL = 0.8
"""Of a pod's slots. Queue depth alone is 0 as soon as there are enough pods, whether they are busy
or idle, and would take them away again: demand says how many requests there are to serve.
"""


@dataclass(frozen=True, slots=True)
class ScalingTarget:
    """`shared`: each pod's part of the figure is compared, else all of it."""

    metric: str
    value: float
    shared: bool = True


def decide_targets(service: InferenceService) -> tuple[ScalingTarget, ...]:
    """None without spec.autoscaling. Of several the autoscaler takes what asks for most pods."""
    scaling = service.spec.autoscaling
    if scaling is None:
        return ()
    depth, demand = scaling.target_queue_depth, scaling.target_demand
    wait = scaling.target_queue_wait_seconds
    if depth is None and demand is None and wait is None:
        depth = DEFAULT_QUEUE_DEPTH
    found = []
    if depth is not None:
        found.append(ScalingTarget(QUEUE_DEPTH, float(depth)))
        if demand is None:
            slots = service.spec.engine.max_num_seqs or DEFAULT_SLOTS
            demand = max(1, round(FULL * slots))
    if demand is not None:
        found.append(ScalingTarget(DEMAND, float(demand)))
    if wait is not None:
        found.append(ScalingTarget(QUEUE_WAIT_SECONDS, wait, shared=False))
    return tuple(found)
