"""Which pods count, and what those say that are gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.operator.memory_cluster import MemoryCluster
from tests.operator.services import NOW, service

from octavo_operator import names
from octavo_operator.facts import read_deployment_problem
from octavo_operator.observe import observe_pods, read_facts
from octavo_operator.render import render
from octavo_operator.status import decide_status


class OnlyPods:
    """A cluster of pods."""

    def __init__(self, *pods: dict[str, Any]) -> None:
        self._pods = list(pods)

    async def list(self, *_: Any) -> list[dict[str, Any]]:
        return self._pods


DEPLOYMENT: dict[str, Any] = {**render(service(), replicas=1)[0], "status": {}}
REVISION: str = DEPLOYMENT["metadata"]["annotations"][names.REVISION_ANNOTATION]
RUNNING = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}


def live_pod(name: str, owner: str | None, revision: str, **status: Any) -> dict[str, Any]:
    controller = {"kind": "ReplicaSet", "name": owner, "uid": "r", "controller": True}
    return {
        "metadata": {
            "name": name,
            "creationTimestamp": f"2026-01-01T00:00:0{name[-1]}Z",
            "labels": names.labels("tiny"),
            "annotations": {names.REVISION_ANNOTATION: revision} if revision else {},
            "ownerReferences": [] if owner is None else [controller],
        },
        "status": status,
    }


def ready(*pods: dict[str, Any]) -> dict[str, Any]:
    cluster: Any = OnlyPods(*pods)
    facts = read_facts(service(), DEPLOYMENT, asyncio.run(observe_pods(cluster, service())))
    found: dict[str, Any] = decide_status(service(), facts, {}, NOW)["conditions"][0]
    return found


def test_pods_that_only_ever_fail_give_the_newest_reason() -> None:
    first = live_pod("tiny-1-1", "tiny-1", REVISION, phase="Failed", reason="Evicted")
    said = {"reason": "UnexpectedAdmissionError", "message": "no healthy devices"}
    last = live_pod("tiny-1-2", "tiny-1", REVISION, phase="Failed", **said)
    older = live_pod("tiny-0-3", "tiny-0", "older", phase="Failed", reason="Evicted")
    found = ready(last, first, older)
    assert (found["reason"], found["message"]) == (said["reason"], said["message"])


def test_a_replaced_failure_says_nothing() -> None:
    failed = live_pod("tiny-1-1", "tiny-1", REVISION, phase="Failed", reason="Evicted")
    assert ready(failed, live_pod("tiny-1-2", "tiny-1", REVISION))["reason"] == "Loading"


def test_pods_of_others_do_not_count() -> None:
    ours = live_pod("tiny-1-1", "tiny-1", REVISION, **RUNNING)
    debug = live_pod("debug-2", None, "", **RUNNING)
    alien = live_pod("alien-1-3", "alien-1", "", **RUNNING)
    assert ready(ours, debug, alien)["status"] == "True"


def test_a_rollout_that_stands_still_is_told() -> None:
    late = {
        "type": "Progressing",
        "status": "False",
        "reason": "ProgressDeadlineExceeded",
        "message": "has timed out progressing",
    }
    problem = read_deployment_problem({"metadata": {}, "status": {"conditions": [late]}})
    assert problem is not None and problem.reason == "Stalled"
    changed = {"metadata": {"generation": 2}, "status": {"conditions": [late]}}
    assert read_deployment_problem(changed) is None  # the controller has not seen the change yet


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("routing", {"gateways": [{"name": "g"}]}, "HTTPRoute"),
        ("networkPolicy", {}, "NetworkPolicy"),
    ],
)
def test_what_the_deployment_named_is_found_when_it_is_made_anew(
    field: str, value: dict[str, Any], kind: str
) -> None:
    """Somebody deleted the Deployment, and took the field away, while no operator ran."""
    cluster = MemoryCluster(**{field: value})
    for _ in range(2):
        cluster.pass_over()
    assert kind in cluster.objects
    del cluster.objects["Deployment"]
    cluster.edit(**{field: None})
    for _ in range(3):
        cluster.pass_over()
    assert kind not in cluster.objects
