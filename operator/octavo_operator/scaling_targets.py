"""Which figures of a service its autoscaler compares, and with what. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from octavo_operator.spec import InferenceService


@dataclass(frozen=True, slots=True)
class ScalingTarget:
    """`shared`: each pod's part of the figure is compared, else all of it."""

    metric: str
    value: float
    shared: bool = True


def decide_targets(service: InferenceService) -> tuple[ScalingTarget, ...]:
    """None without spec.autoscaling."""
    scaling = service.spec.autoscaling
    if scaling is None:
        return ()
    return (ScalingTarget("octavo_queue_depth", float(scaling.target_queue_depth)),)
