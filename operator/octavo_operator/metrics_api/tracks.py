"""What one pod said of itself lately. Pure: times are seconds of a clock that only goes forward."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from octavo_operator.pod_load import PodLoad

KEPT_SECONDS = 30.0
"""A pod that does not answer keeps its last figures for this long."""

RATE_SECONDS = 30.0
"""How far back the rate is measured at which a pod takes up waiting requests."""


@dataclass(frozen=True, slots=True)
class Sample:
    """`wait_seconds` is what a request that arrives now would wait; None where the pod's server is
    too old to tell.
    """

    at: float
    load: PodLoad
    wait_seconds: float | None


@dataclass(slots=True)
class Track:
    """Of one pod, over all runs of its server.

    `since`: when it was first seen to be ready, which it then owes figures from; None: never yet.
    """

    last: Sample | None = None
    since: float | None = None
    _taken: deque[tuple[float, int]] = field(default_factory=deque)  # (at, requests taken up)

    def saw(self, *, ready: bool, now: float) -> None:
        if ready and self.since is None:
            self.since = now

    def heard(self, load: PodLoad, at: float) -> None:
        """`at`: when it was asked. An answer that was overtaken by a later one is no news."""
        if self.last is not None and at <= self.last.at:
            return
        self.last = Sample(at, load, self._wait(load, at))

    def fresh(self, now: float) -> Sample | None:
        return self.last if self.last is not None and now - self.last.at <= KEPT_SECONDS else None

    def silent_seconds(self, now: float) -> float:
        """Since the last figures, or since it first owed some."""
        if self.last is not None:
            return now - self.last.at
        return 0.0 if self.since is None else now - self.since

    def _wait(self, load: PodLoad, at: float) -> float | None:
        """Those who wait, by the rate at which requests were taken up while some waited. Where none
        was: as long as they have been seen to wait, which is the least that it can be.
        """
        if load.admitted is None:
            return None
        if load.waiting == 0:
            self._taken.clear()
            return 0.0
        if self._taken and load.admitted < self._taken[-1][1]:
            self._taken.clear()  # its server was started again
        self._taken.append((at, load.admitted))
        while len(self._taken) > 2 and at - self._taken[1][0] >= RATE_SECONDS:
            self._taken.popleft()
        began, before = self._taken[0]
        if (taken := load.admitted - before) <= 0:
            return at - began
        return load.waiting * (at - began) / taken
