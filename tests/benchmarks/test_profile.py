"""The arithmetic of the step profile."""

from __future__ import annotations

import pytest
from benchmarks.profile_step import Phases, busy, kernel_table, launches_per_layer, spread


class Part:
    def schedule(self) -> int:
        return 1

    update = launch = wait = schedule


class Core(Part):
    def __init__(self) -> None:
        self.scheduler, self.runner = Part(), Part()

    def step(self) -> int:
        return self.scheduler.schedule() + self.runner.launch()


def test_phases_are_timed_only_inside_the_block() -> None:
    core = Core()
    with Phases(core) as phases:
        assert core.step() == 2
    core.step()
    counts = {name: len(times) for name, times in phases.nanoseconds.items()}
    assert counts == {"schedule": 1, "launch": 1, "wait": 0, "update": 0, "step": 1}
    assert phases.nanoseconds["step"][0] >= phases.nanoseconds["schedule"][0]


def test_kernels_side_by_side_count_once() -> None:
    assert busy([(0, 10), (5, 12), (20, 21), (6, 7)]) == 13
    assert busy([]) == 0


def test_kernels_are_summed_by_step_and_sorted_by_time() -> None:
    kernels = [("norm", 0.0, 2.0)] * 8 + [("gemm", 0.0, 10.0)] * 8 + [("sample", 0.0, 3.0)] * 2
    table = kernel_table(kernels, steps=2)
    assert [row["name"] for row in table] == ["gemm", "norm", "sample"]
    assert table[0] == {
        "name": "gemm",
        "us_per_step": 40.0,
        "launches_per_step": 4.0,
        "us_each": 10.0,
    }
    assert launches_per_layer(table, layers=4) == 2
    assert launches_per_layer(table, layers=2) == 4


def test_a_spread_is_in_microseconds() -> None:
    found = spread([1000, 3000, 2000])
    assert (found["median_us"], found["mean_us"], found["calls"]) == (2.0, pytest.approx(2.0), 3)
    assert spread([]) == {"calls": 0}
