"""Unknown is never zero, idle is an explicit 0: all cases of up to three pods, and the words."""

from __future__ import annotations

import itertools
import math

import pytest
from tests.operator.metrics_api.loads import track

from octavo_operator.metrics_api.figures import (
    DEMAND,
    FIGURES,
    KV_CACHE_USAGE,
    QUEUE_DEPTH,
    QUEUE_WAIT_SECONDS,
    RUNNING,
)
from octavo_operator.metrics_api.judgement import (
    Known,
    PodTrack,
    Scaling,
    Target,
    Unknown,
    judge_pod,
    judge_service,
)
from octavo_operator.metrics_api.tracks import Track

NOW = 1000.0
QUEUE = FIGURES[QUEUE_DEPTH]

STATES = {
    "loads": lambda: track(ready_at=None),
    "loads and answers": lambda: track(ready_at=None, heard_at=NOW - 1, waiting=1),
    "idle": lambda: track(heard_at=NOW - 1),
    "busy": lambda: track(heard_at=NOW - 2, waiting=10),
    "missing for a while": lambda: track(heard_at=NOW - 29, waiting=7),
    "missing": lambda: track(heard_at=NOW - 37, waiting=10),
    "ready and never heard": lambda: track(ready_at=NOW - 3),
}
WAITING = {"loads and answers": 1, "busy": 10, "missing for a while": 7}
SERVED = {"idle", "busy", "missing for a while", "missing", "ready and never heard"}
SILENT = {"missing", "ready and never heard"}


def pods(*states: str) -> list[PodTrack]:
    return [PodTrack(f"a-{index}", STATES[state]()) for index, state in enumerate(states)]


def scaling(replicas: int | None, least: int = 1, target: float | None = 5) -> Scaling:
    targets = {} if target is None else {QUEUE_DEPTH: Target(target, shared=True)}
    return Scaling(replicas, least, targets)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_every_case(count: int) -> None:
    for states in itertools.product(STATES, repeat=count):
        for replicas, least in itertools.product((1, 2, 3, 4), (1, 2)):
            for target in (None, 5, 1000):
                told = judge_service(QUEUE, pods(*states), scaling(replicas, least, target), NOW)
                served = [each for each in states if each in SERVED]
                silent = [each for each in states if each in SILENT]
                heard = sum(WAITING.get(each, 0) for each in states)
                # What the HPA would make of the others' alone.
                asks = None if target is None else max(least, math.ceil(heard / target))
                safe = asks is not None and asks >= replicas and len(silent) < len(served)
                if not silent or safe:
                    assert isinstance(told, Known) and told.value == heard, (states, replicas)
                else:
                    assert isinstance(told, Unknown), (states, replicas, target)


@pytest.mark.parametrize("metric", FIGURES)
def test_idle_and_nobody_there_are_an_explicit_0(metric: str) -> None:
    one = track(heard_at=NOW - 1, kv_cache_usage=0)
    for there in ([], [PodTrack("a", one)], pods("loads", "loads")):
        assert judge_service(FIGURES[metric], there, Scaling(), NOW) == Known(
            0.0, 1.0 if there and there[0].track is one else 0.0
        )


def test_sums_and_means() -> None:
    there = [
        PodTrack("a", track(heard_at=NOW - 1, waiting=3, running=7, kv_cache_usage=0.5)),
        PodTrack("b", track(heard_at=NOW - 4, waiting=1, running=2, kv_cache_usage=0.25)),
    ]

    def value(metric: str) -> Known | Unknown:
        return judge_service(FIGURES[metric], there, Scaling(), NOW)

    assert value(QUEUE_DEPTH) == Known(4, 4.0)
    assert value(RUNNING) == Known(9, 4.0)
    assert value(DEMAND) == Known(13, 4.0)
    assert value(KV_CACHE_USAGE) == Known(0.375, 4.0)


def test_a_pod_that_loads_takes_no_part_in_a_mean() -> None:
    there = [
        PodTrack("a", track(heard_at=NOW, kv_cache_usage=0.5)),
        PodTrack("b", track(ready_at=None, heard_at=NOW, kv_cache_usage=0.0)),
    ]
    assert judge_service(FIGURES[KV_CACHE_USAGE], there, Scaling(), NOW) == Known(0.5)


def test_what_is_not_shared_is_compared_as_it_is() -> None:
    slow = Track()
    slow.saw(ready=True, now=NOW - 60)
    for second in range(20):
        slow.heard(_stuck(), NOW - 20 + second)
    there = [PodTrack("a", slow), *pods("missing")]
    figure = FIGURES[QUEUE_WAIT_SECONDS]
    # 19 s of one of two pods: 9.5 s for whoever comes now, with nobody at the other.
    for target, known in ((9.0, True), (10.0, False)):
        asked = Scaling(2, 1, {QUEUE_WAIT_SECONDS: Target(target, shared=False)})
        told = judge_service(figure, there, asked, NOW)
        assert isinstance(told, Known) == known


def _stuck():  # type: ignore[no-untyped-def]
    from tests.operator.metrics_api.loads import load

    return load(waiting=4, admitted=1)


def test_words() -> None:
    all_gone = [
        PodTrack("a", track(heard_at=NOW - 37)),
        PodTrack("b", track(heard_at=NOW - 90)),
    ]
    told = judge_service(QUEUE, all_gone, scaling(2), NOW)
    assert told == Unknown("no sample for 37 s (2 of 2 pods failed)")
    told = judge_service(QUEUE, pods("idle", "missing", "busy"), scaling(3), NOW)
    assert told == Unknown(
        "no sample of pod a-1 for 37 s (1 of 3 pods failed), and the others' alone could take pods "
        "away"
    )


def test_a_server_of_before_is_named() -> None:
    there = [
        PodTrack("a", track(heard_at=NOW, admitted=None)),
        PodTrack("b", track(heard_at=NOW, admitted=1)),
    ]
    told = judge_service(FIGURES[QUEUE_WAIT_SECONDS], there, Scaling(), NOW)
    assert told == Unknown("1 of 2 pods run a server without it")
    assert judge_pod(FIGURES[QUEUE_WAIT_SECONDS], there[0].track, NOW) == Unknown(
        "it runs a server without it"
    )


def test_one_pod() -> None:
    assert judge_pod(QUEUE, STATES["busy"](), NOW) == Known(10, 2.0)
    assert judge_pod(QUEUE, STATES["idle"](), NOW) == Known(0, 1.0)
    assert judge_pod(QUEUE, STATES["missing"](), NOW) == Unknown("no sample for 37 s")
    assert judge_pod(QUEUE, STATES["loads"](), NOW) == Unknown("it is not ready yet")
    assert isinstance(judge_pod(QUEUE, None, NOW), Unknown)
