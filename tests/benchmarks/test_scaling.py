"""The simulated autoscaler does as Kubernetes' own, and the simulated pods as a queue does."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.autoscaling import POLICIES
from benchmarks.scaling.controller import Controller, Metric
from benchmarks.scaling.pods import SLOTS, STARTUP_SECONDS, simulate
from benchmarks.scaling.traces import TRACES, Request

AT_ONCE: dict[str, Any] = {
    "stabilizationWindowSeconds": 0,
    "policies": [{"type": "Pods", "value": 100, "periodSeconds": 15}],
}
FREE = {"scaleUp": AT_ONCE, "scaleDown": AT_ONCE}


@pytest.mark.parametrize(
    ("metric", "value", "replicas", "wanted"),
    [
        (Metric("m", 5), 14, 1, 3),
        (Metric("m", 5), 0, 3, 0),
        (Metric("m", 5), 16, 3, 3),  # within a tenth
        (Metric("m", 5), 16.6, 3, 4),
        (Metric("m", 2, "Value"), 6, 2, 6),
        (Metric("m", 2, "Value"), 2.1, 2, 2),
        (Metric("m", 0.8, "Utilization"), 1.0, 4, 5),
    ],
)
def test_a_metric(metric: Metric, value: float, replicas: int, wanted: int) -> None:
    assert metric.wants(value, replicas, replicas) == wanted


def decide(controller: Controller, value: float, replicas: int, now: float) -> int:
    return controller.decide({"m": value}, replicas, replicas, now)


def test_bounds_and_the_larger_wish() -> None:
    assert decide(Controller((Metric("m", 1),), 2, 4, FREE), 99, 2, 0) == 4
    assert decide(Controller((Metric("m", 1),), 2, 4, FREE), 0, 3, 0) == 2
    both = Controller((Metric("m", 10), Metric("n", 1)), 1, 9, FREE)
    assert both.decide({"m": 20.0, "n": 5.0}, 1, 1, 0.0) == 5


def test_policies_bound_what_changes_in_a_period() -> None:
    slow = {**AT_ONCE, "policies": [
        {"type": "Percent", "value": 100, "periodSeconds": 60},
        {"type": "Pods", "value": 2, "periodSeconds": 60}]}  # fmt: skip
    controller = Controller((Metric("m", 1),), 1, 20, {"scaleUp": slow, "scaleDown": slow})
    assert decide(controller, 20, 1, 0) == 3
    assert decide(controller, 20, 3, 15) == 3
    assert decide(controller, 20, 3, 60) == 6
    assert decide(controller, 0, 6, 300) == 1


def test_the_highest_wish_of_the_window_holds() -> None:
    calm = {**AT_ONCE, "stabilizationWindowSeconds": 100}
    controller = Controller((Metric("m", 1),), 1, 9, {"scaleUp": AT_ONCE, "scaleDown": calm})
    assert decide(controller, 3, 1, 0) == 3
    assert decide(controller, 0, 3, 90) == 3
    assert decide(controller, 0, 3, 110) == 1


def test_who_finds_no_slot_waits_and_a_new_pod_starts() -> None:
    calm = {**AT_ONCE, "stabilizationWindowSeconds": 1000}
    controller = Controller(
        (Metric("octavo_demand", SLOTS),), 1, 2, {"scaleUp": AT_ONCE, "scaleDown": calm}
    )
    many = [Request(1.0, 20.0) for _ in range(2 * SLOTS)]
    late = 16.0 + STARTUP_SECONDS
    outcome = simulate([*many, *(Request(late, 1.0) for _ in range(SLOTS))], 300.0, controller)
    assert sorted(outcome.waits[: 2 * SLOTS]) == [0.0] * SLOTS + [20.0] * SLOTS
    assert outcome.waits[2 * SLOTS :] == [0.0] * SLOTS  # two pods share them
    assert outcome.gpu_hours == pytest.approx((300 + 285) / 3600)
    assert outcome.flaps == 0


def test_arrivals_are_the_same_every_time_and_as_many_as_they_should() -> None:
    steady = TRACES[0]
    made = steady.requests()
    assert made == steady.requests() != steady.requests(seed=1)
    assert len(made) == pytest.approx(11.0 * steady.seconds, rel=0.02)
    tokens = sum((each.seconds - 0.2) / 0.03 for each in made) / len(made)
    assert tokens == pytest.approx(211, rel=0.05)


def test_the_default_is_what_the_operator_renders() -> None:
    names = [each.name for each in POLICIES["queue depth 5 and demand (default)"]]
    assert names == ["octavo_queue_depth", "octavo_demand"]
