"""The arithmetic of Kubernetes' HorizontalPodAutoscaler: metrics to a number of pods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SYNC_SECONDS, TOLERANCE = 15, 0.1


@dataclass(frozen=True, slots=True)
class Metric:
    """`kind`: AverageValue (each pod's share of it), Value (all of it), or Utilization, which is
    the mean of the pods' own.
    """

    name: str
    target: float
    kind: str = "AverageValue"

    def wants(self, value: float, replicas: int, ready: int) -> int:
        if self.kind == "AverageValue":
            if abs(value / (self.target * replicas) - 1) <= TOLERANCE:
                return replicas
            return math.ceil(value / self.target)
        if abs(value / self.target - 1) <= TOLERANCE:
            return replicas
        return math.ceil(value / self.target * ready)


@dataclass(slots=True)
class Controller:
    metrics: tuple[Metric, ...]
    least: int
    most: int
    behavior: Mapping[str, Any]
    _wished: list[tuple[float, int]] = field(default_factory=list)
    _changed: list[tuple[float, int]] = field(default_factory=list)

    def decide(self, values: Mapping[str, float], replicas: int, ready: int, now: float) -> int:
        """How many pods from now on."""
        wish = max(each.wants(values[each.name], replicas, ready) for each in self.metrics)
        wish = min(max(wish, self.least), self.most)
        self._wished.append((now, wish))
        up, down = self.behavior["scaleUp"], self.behavior["scaleDown"]
        lowest = min(self._wishes(now - up["stabilizationWindowSeconds"]))
        highest = max(self._wishes(now - down["stabilizationWindowSeconds"]))
        calm = min(max(replicas, lowest), highest)
        if calm > replicas:
            calm = min(calm, self._bound(up, replicas, now, +1))
        elif calm < replicas:
            calm = max(calm, self._bound(down, replicas, now, -1))
        if calm != replicas:
            self._changed.append((now, calm - replicas))
        return calm

    def _wishes(self, since: float) -> list[int]:
        return [wish for at, wish in self._wished if at >= since] or [self._wished[-1][1]]

    def _bound(self, rules: Mapping[str, Any], replicas: int, now: float, sign: int) -> int:
        """As far as the policies let it go from the number that the period began with."""
        bounds = []
        for policy in rules["policies"]:
            changes = [by for at, by in self._changed if at > now - policy["periodSeconds"]]
            began = replicas - sum(changes)
            step = policy["value"]
            if policy["type"] == "Percent":
                bounds.append(math.ceil(began * (1 + sign * step / 100)))
            else:
                bounds.append(began + sign * step)
        return max(bounds) if sign > 0 else min(bounds)
