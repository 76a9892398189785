"""What `spec.autoscaling` says: between how many pods, by which figures, and who does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaling:
    """Without any target there are `DEFAULT_QUEUE_DEPTH` waiting requests a pod. `behavior` is that
    of a HorizontalPodAutoscaler, `provider` who scales: "HPA", or "None" for somebody else.
    """

    min_replicas: int = 1
    max_replicas: int
    target_queue_depth: int | None = None
    target_demand: int | None = None
    target_queue_wait_seconds: float | None = None
    behavior: Mapping[str, Any] = field(default_factory=dict)
    provider: str = "HPA"


DEFAULT_QUEUE_DEPTH = 5


def find_scaling_mistake(scaling: Autoscaling) -> tuple[str, str] | None:
    """(path, what is wrong)."""
    if scaling.min_replicas > scaling.max_replicas:
        return "spec.autoscaling.minReplicas", "minReplicas must not exceed maxReplicas"
    wait = scaling.target_queue_wait_seconds
    if wait is not None and not 0.001 <= wait <= 86400:
        wrong = "targetQueueWaitSeconds must be between 0.001 and 86400"
        return "spec.autoscaling.targetQueueWaitSeconds", wrong
    return None
