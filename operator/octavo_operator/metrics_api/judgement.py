"""What is said of a service or a pod: a number with its age, or why there is none. Pure.

Unknown is never zero: whoever scales by a number that lacks a busy pod takes pods away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from octavo_operator.metrics_api.figures import Figure
from octavo_operator.metrics_api.tracks import Track


@dataclass(frozen=True, slots=True)
class Known:
    """`age_seconds` is the oldest part's."""

    value: float
    age_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Unknown:
    """`why`, in words that stand well behind "octavo_running of tiny: "."""

    why: str


@dataclass(frozen=True, slots=True)
class Target:
    """What an autoscaler of ours compares a figure with: each pod's share of it, or all of it."""

    value: float
    shared: bool


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many pods a service wants now, and what changes that; no targets: nobody knows."""

    replicas: int | None = None
    least: int = 1
    targets: Mapping[str, Target] = field(default_factory=dict)

    def lowers(self, figure: Figure, value: float) -> bool:
        """Whether this value might take a pod away; True where that cannot be told."""
        target = self.targets.get(figure.name)
        if target is None or self.replicas is None:
            return True
        if not target.shared:
            return value < target.value
        return max(self.least, math.ceil(value / target.value)) < self.replicas


@dataclass(frozen=True, slots=True)
class PodTrack:
    """A pod that is not being deleted."""

    name: str
    track: Track


def judge_service(
    figure: Figure, pods: Sequence[PodTrack], scaling: Scaling, now: float
) -> Known | Unknown:
    """Of a service with these pods. Pods that have not been ready yet count where they answer, and
    for nothing where they do not: a service whose first pod still loads has an explicit 0.
    """
    # Of a mean only the pods that requests go to are a part.
    parts = [each for each in pods if figure.summed or each.track.since is not None]
    fresh = [sample for each in parts if (sample := each.track.fresh(now)) is not None]
    values = [value for each in fresh if (value := figure.of(each)) is not None]
    if len(values) < len(fresh):
        return Unknown(f"{len(fresh) - len(values)} of {len(parts)} pods run a server without it")
    owing = [each for each in pods if each.track.since is not None]
    silent = [each for each in owing if each.track.fresh(now) is None]
    value = figure.join(values, len(owing))
    if not silent:
        return Known(value, max((now - each.at for each in fresh), default=0.0))
    failed = f"{len(silent)} of {len(owing)} pods failed"
    if len(silent) == len(owing):
        latest = min(each.track.silent_seconds(now) for each in silent)
        return Unknown(f"no sample for {latest:.0f} s ({failed})")
    if not scaling.lowers(figure, value):
        return Known(value, max((now - each.at for each in fresh), default=0.0))
    longest = max(silent, key=lambda each: each.track.silent_seconds(now))
    seconds = longest.track.silent_seconds(now)
    return Unknown(
        f"no sample of pod {longest.name} for {seconds:.0f} s ({failed}), "
        "and the others' alone could take pods away"
    )


def judge_pod(figure: Figure, track: Track | None, now: float) -> Known | Unknown:
    """Of one pod; None: its server does not run, or it is being deleted."""
    if track is None:
        return Unknown("its server does not run, or it is being deleted")
    if (sample := track.fresh(now)) is None:
        if track.last is None and track.since is None:
            return Unknown("it is not ready yet")
        return Unknown(f"no sample for {track.silent_seconds(now):.0f} s")
    if (value := figure.of(sample)) is None:
        return Unknown("it runs a server without it")
    return Known(value, now - sample.at)
