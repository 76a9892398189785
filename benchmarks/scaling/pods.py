"""Pods with a start-up time and so many slots, before which requests wait: what autoscalers see."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

from benchmarks.scaling.controller import SYNC_SECONDS, Controller
from benchmarks.scaling.traces import Request

SLOTS = 32
STARTUP_SECONDS = 120.0


@dataclass(slots=True)
class Pod:
    """A request that was sent to a pod stays there, whoever is idle."""

    made: float
    ready: float
    gone: float | None = None
    _free: list[float] = field(default_factory=lambda: [0.0] * SLOTS)  # when each slot is
    _begins: list[float] = field(default_factory=list)
    _ends: list[float] = field(default_factory=list)

    def take(self, request: Request) -> float:
        """How long it waits."""
        begins = max(request.at, self._free[0])
        heapq.heapreplace(self._free, begins + request.seconds)
        heapq.heappush(self._begins, begins)
        heapq.heappush(self._ends, begins + request.seconds)
        return begins - request.at

    def waiting(self, now: float) -> int:
        while self._begins and self._begins[0] <= now:
            heapq.heappop(self._begins)
        return len(self._begins)

    def demand(self, now: float) -> int:
        while self._ends and self._ends[0] <= now:
            heapq.heappop(self._ends)
        return len(self._ends)

    def next_wait(self, now: float) -> float:
        return max(0.0, self._free[0] - now)

    def idle_at(self) -> float:
        return max(self._free)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`flaps`: how often pods were added and then taken away, or the other way round."""

    gpu_hours: float
    waits: list[float]
    flaps: int
    replicas: list[tuple[float, int]]
    demand: list[tuple[float, int]]
    queue: list[tuple[float, int]]

    def wait(self, part: float) -> float:
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def simulate(requests: list[Request], seconds: float, controller: Controller) -> Outcome:
    """GPUs are counted from a pod's making until its last answer."""
    source = random.Random(7)
    first = [Pod(0.0, 0.0) for _ in range(controller.least)]
    pods, waits, over = first, list[float](), list[Pod]()
    replicas, demand, queue = list[tuple[float, int]](), [], []
    direction = flaps = 0
    coming = iter(requests)
    request = next(coming, None)
    now = 0.0
    while now < seconds:
        now += SYNC_SECONDS
        while request is not None and request.at < now:
            serving = [each for each in pods if each.ready <= request.at]
            waits.append(source.choice(serving).take(request))
            request = next(coming, None)
        ready = [each for each in pods if each.ready <= now]
        waiting = sum(each.waiting(now) for each in pods)
        busy = sum(each.demand(now) for each in pods)
        values = {
            "octavo_queue_depth": float(waiting),
            "octavo_demand": float(busy),
            "octavo_queue_wait_seconds": sum(each.next_wait(now) for each in ready) / len(ready),
            # A GPU is busy as soon as one request runs: what it shows is no load.
            "gpu": sum(each.demand(now) > 0 for each in ready) / len(ready),
            "slots": sum(min(each.demand(now), SLOTS) for each in ready) / SLOTS / len(ready),
        }
        wanted = controller.decide(values, len(pods), len(ready), now)
        if (turn := (wanted > len(pods)) - (wanted < len(pods))) and turn != direction:
            flaps += direction != 0
            direction = turn
        pods = pods + [Pod(now, now + STARTUP_SECONDS) for _ in range(wanted - len(pods))]
        # Those that load go first, then the idlest, as the deletion cost has it.
        pods.sort(key=lambda each: (each.ready > now, each.demand(now), each.made))
        loading = [each for each in pods if each.ready > now]
        serving = [each for each in pods if each.ready <= now]
        leaving = (loading + serving)[: max(0, len(pods) - wanted)]
        for each in leaving:
            each.gone = max(now, each.idle_at())
        over += leaving
        pods = [each for each in pods if each not in leaving]
        replicas.append((now, len(pods)))
        demand.append((now, busy))
        queue.append((now, waiting))
    held = sum((each.gone or now) - each.made for each in [*over, *pods])
    return Outcome(held / 3600, waits, flaps, replicas, demand, queue)
