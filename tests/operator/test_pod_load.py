"""What pods say of themselves, and what the status makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.pod_load import parse_load, report

ANSWER = {
    "server_load": 3,
    "state": "ready",
    "running": 2,
    "waiting": 1,
    "admitted": 12,
    "kv_cache_usage": 0.123,
    "kv_cache_tokens": 4096,
    "startup_seconds": 8.4,
    "version": "0.1.0",
}


def test_it_is_what_the_server_answers() -> None:
    """The keys, against the server's own code."""
    from types import SimpleNamespace

    from octavo_server.api.load import describe_load
    from octavo_server.api.metrics import Metrics

    service: Any = SimpleNamespace(
        metrics=Metrics("m"),
        ready=None,
        lifecycle=SimpleNamespace(active=7, state="starting"),
        startup_seconds=0.0,
    )
    load = parse_load(describe_load(service))
    assert load is not None and (load.in_flight, load.admitted) == (7, 0)


def test_a_server_of_before_does_not_tell_whom_it_took_up() -> None:
    load = parse_load({key: value for key, value in ANSWER.items() if key != "admitted"})
    assert load is not None and load.admitted is None


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {**ANSWER, "running": None},
        {**ANSWER, "running": "many"},
        {**ANSWER, "waiting": [1]},
        {**ANSWER, "waiting": float("inf")},
        {**ANSWER, "kv_cache_usage": {}},
        {**ANSWER, "startup_seconds": float("nan")},
    ],
)
def test_a_strangers_answer_is_none(answer: dict[str, Any] | None) -> None:
    assert parse_load(answer) is None


def test_figures_are_bounded() -> None:
    wild = {"running": 10**300, "waiting": -5, "kv_cache_usage": 7, "version": "x" * 1000}
    load = parse_load({**ANSWER, **wild})
    assert load is not None
    assert (load.running, load.waiting, load.kv_cache_usage) == (2**53, 0, 1.0)
    assert len(load.version) == 64


def loads(*changes: dict[str, Any]) -> list[Any]:
    return [parse_load({**ANSWER, **each}) for each in changes]


def test_sums_over_pods_and_the_smallest_cache() -> None:
    found = report(loads({}, {"kv_cache_tokens": 1024, "startup_seconds": 3, "version": "0.2"}))
    assert found == {
        "version": "0.2",
        "kvCacheTokens": 1024,
        "startupSeconds": 8,
        "running": 4,
        "waiting": 2,
        "kvCachePercent": 10,
    }
    assert report([]) is None


@pytest.mark.parametrize(
    ("waiting", "told"),
    [(0, 0), (10, 10), (11, 11), (99, 99), (101, 100), (987, 990), (999, 1000), (1499, 1000),
     (15_600, 20_000)],
)  # fmt: skip
def test_large_numbers_are_rounded(waiting: int, told: int) -> None:
    found = report(loads({"waiting": waiting}))
    assert found is not None and found["waiting"] == told
