"""What is made of the API server's objects."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.metrics_api.loads import load
from tests.operator.services import manifest

from octavo_operator import names
from octavo_operator.metrics_api.figures import DEMAND, FIGURES, QUEUE_DEPTH
from octavo_operator.metrics_api.fleet import Fleet, read_pod, read_service
from octavo_operator.metrics_api.judgement import (
    Known,
    Scaling,
    Target,
    Unknown,
    judge_service,
)

TINY = ("ns", "tiny")


def pod(name: str = "tiny-1-a", *, ready: bool = True, **changes: Any) -> dict[str, Any]:
    """`changes` by path, as metadata_labels."""
    owner = {"kind": "ReplicaSet", "name": "tiny-1", "uid": "r", "controller": True}
    made: dict[str, Any] = {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": f"uid-{name}",
            "labels": {names.SERVICE_LABEL: "tiny"},
            "ownerReferences": [owner],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [
                {"name": names.CONTAINER, "restartCount": 0, "state": {"running": {}}}
            ],
        },
    }
    for path, value in changes.items():
        part, _, key = path.partition("_")
        made[part][key] = value
    return made


def container(count: int, state: str) -> list[dict[str, Any]]:
    return [{"name": names.CONTAINER, "restartCount": count, "state": {state: {}}}]


def test_what_a_service_wants() -> None:
    found = read_service(manifest(replicas=3, autoscaling={"minReplicas": 2, "maxReplicas": 4}))
    assert found.key == TINY
    assert (found.scaling.replicas, found.scaling.least) == (3, 2)
    assert found.scaling.targets[QUEUE_DEPTH] == Target(5.0, shared=True)
    assert read_service(manifest()).scaling == Scaling()
    assert read_service(manifest(model={"uri": "what"}, replicas=2)).scaling == Scaling()


@pytest.mark.parametrize(
    ("changes", "counts", "asked"),
    [
        ({}, True, True),
        ({"ready": False}, True, True),
        ({"status_podIP": ""}, True, False),
        ({"status_containerStatuses": container(0, "waiting")}, True, False),
        ({"status_containerStatuses": None}, True, False),
        ({"metadata_deletionTimestamp": "2026-01-01T00:00:00Z"}, False, False),
        ({"status_phase": "Failed"}, False, False),
        ({"metadata_ownerReferences": []}, False, False),  # a debugging copy
    ],
)
def test_which_pods_are_asked(changes: dict[str, Any], counts: bool, asked: bool) -> None:
    found = read_pod(pod(**changes))
    assert (found.counts, found.asked) == (counts, asked)


def test_figures_stay_with_a_pod_whose_server_starts_again() -> None:
    fleet = Fleet()
    fleet.saw_pod(pod(), 1.0)
    (before,) = fleet.pods()
    before.track.heard(load(waiting=3), 2.0)
    fleet.saw_pod(pod(ready=False), 3.0)
    (after,) = fleet.pods()
    assert after.track is before.track and after.track.since == 1.0
    # It crashed, as all of them may: that is no sign of nothing to do.
    fleet.saw_pod(pod(ready=False, status_containerStatuses=container(0, "terminated")), 4.0)
    crashed = FIGURES[DEMAND], fleet.tracks(TINY), Scaling()
    assert judge_service(*crashed, 6.0) == Known(3.0, 4.0)
    assert judge_service(*crashed, 40.0) == Unknown("no sample for 38 s (1 of 1 pods failed)")
    fleet.saw_pod(pod(ready=False, status_containerStatuses=container(1, "running")), 41.0)
    assert isinstance(judge_service(*crashed, 41.0), Unknown)
    # It says so itself while it loads.
    next(fleet.pods()).track.heard(load(), 42.0)
    assert judge_service(*crashed, 42.0) == Known(0.0, 0.0)


def test_a_pod_of_the_same_name_is_another() -> None:
    fleet = Fleet()
    fleet.saw_pod(pod(), 1.0)
    next(fleet.pods()).track.heard(load(waiting=3), 2.0)
    fleet.saw_pod(pod(metadata_uid="other"), 3.0)
    assert next(fleet.pods()).track.last is None


def test_who_goes_is_forgotten() -> None:
    fleet = Fleet()
    fleet.saw_pod(pod("tiny-1-a"), 1.0)
    fleet.saw_pod(pod("tiny-1-b"), 1.0)
    assert [each.name for each in fleet.tracks(TINY)] == ["tiny-1-a", "tiny-1-b"]
    fleet.lost_pod(("ns", "tiny-1-a"))
    fleet.lost_pod(("ns", "tiny-1-a"))
    assert [each.name for each in fleet.tracks(TINY)] == ["tiny-1-b"]
    moved = pod("tiny-1-b", metadata_labels={names.SERVICE_LABEL: "other"})
    fleet.saw_pod(moved, 2.0)
    assert fleet.tracks(TINY) == []


def test_a_list_is_all_there_is_of_its_namespace() -> None:
    fleet = Fleet()
    for namespace in ("ns", "other"):
        fleet.saw_pod(pod(metadata_namespace=namespace), 1.0)
        fleet.saw_service({**manifest(), "metadata": {"namespace": namespace, "name": "tiny"}})
    fleet.keep_pods("ns", [])
    fleet.keep_services("ns", [])
    assert [each.key[0] for each in fleet.pods()] == ["other"]
    assert list(fleet.services) == [("other", "tiny")]
    fleet.keep_pods(None, [])
    fleet.keep_services(None, [])
    assert not list(fleet.pods()) and not fleet.services
