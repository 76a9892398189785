"""A revision whose pods fail goes; what worked before comes back, and stays until somebody acts."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.operator.memory_cluster import MemoryCluster
from tests.operator.services import NOW

from octavo_operator import names
from octavo_operator.drain import grace_seconds
from octavo_operator.rollback import STUCK_SECONDS, UNSCHEDULABLE_SECONDS

SAID = json.dumps({"reason": "InvalidArgument", "message": "max_model_len 9999 is too long"})


def crashed(times: int) -> dict[str, Any]:
    ended = {"exitCode": 1, "message": SAID}
    return {
        "containerStatuses": [
            {"name": "octavo", "restartCount": times - 1, "state": {"terminated": ended}}
        ]
    }


def waiting(reason: str) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "octavo", "state": {"waiting": {"reason": reason}}}]}


UNSCHEDULABLE = {
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
}


def later(seconds: float) -> str:
    found = datetime.fromisoformat(NOW) + timedelta(seconds=seconds)
    return found.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def cluster() -> MemoryCluster:
    """A service that has worked, with a change that rolls now."""
    cluster = MemoryCluster(engine={"maxModelLen": 512})
    cluster.pass_over()
    cluster.has_pods(cluster.pod_of(ready=True))
    assert cluster.pass_over()["Ready"]["status"] == "True"
    cluster.edit(engine={"maxModelLen": 9999})
    cluster.pass_over()
    return cluster


def length(cluster: MemoryCluster) -> str:
    flag = "--max-model-len="
    (found,) = (each for each in cluster.container["args"] if each.startswith(flag))
    return str(found.removeprefix(flag))


def fail(cluster: MemoryCluster) -> dict[str, Any]:
    cluster.has_pods(cluster.pod_of(**crashed(3)))
    told = cluster.pass_over()["WorkloadReady"]
    assert length(cluster) == "512"
    return told


def test_it_goes_back_and_says_why(cluster: MemoryCluster) -> None:
    before = cluster.revision
    told = fail(cluster)
    assert cluster.revision != before
    assert (told["status"], told["reason"]) == ("False", "RolledBack")
    assert "InvalidArgument: max_model_len 9999 is too long" in told["message"]
    assert cluster.live["status"]["rollout"]["reason"].startswith("rolled back: pods with the new")
    assert any(each.startswith("Warning RolledBack: ") for each in cluster.events)
    cluster.has_pods(cluster.pod_of(ready=True))
    told = cluster.pass_over()
    assert told["ModelReady"]["status"] == "True"
    assert (told["Ready"]["status"], told["Ready"]["reason"]) == ("False", "RolledBack")
    events = list(cluster.events)
    assert cluster.pass_over() == told
    assert cluster.events == events


def test_its_status_is_that_of_the_pods_of_before(cluster: MemoryCluster) -> None:
    fail(cluster)
    cluster.has_pods(cluster.pod_of(ready=True))
    cluster.pass_over()
    assert cluster.live["status"]["rollout"]["complete"]
    assert cluster.live["status"]["readyReplicas"] == 1


@pytest.mark.parametrize("times", [1, 2])
def test_not_at_the_first_failures(cluster: MemoryCluster, times: int) -> None:
    cluster.has_pods(cluster.pod_of(**crashed(times)))
    assert cluster.pass_over()["Ready"]["reason"] == "InvalidArgument"
    assert length(cluster) == "9999"


def test_not_while_a_new_pod_serves(cluster: MemoryCluster) -> None:
    cluster.has_pods(cluster.pod_of(ready=True), cluster.pod_of(**crashed(9)))
    cluster.pass_over()
    assert length(cluster) == "9999"


def test_not_once_it_has_worked(cluster: MemoryCluster) -> None:
    cluster.has_pods(cluster.pod_of(ready=True))
    cluster.pass_over()
    cluster.pass_over()  # proven: what was before is forgotten
    assert names.LAST_GOOD_ANNOTATION not in cluster.deployment["metadata"]["annotations"]
    cluster.has_pods(cluster.pod_of(**crashed(9)))
    cluster.pass_over()
    assert length(cluster) == "9999"


def test_there_is_nothing_before_the_first() -> None:
    cluster = MemoryCluster(engine={"maxModelLen": 9999})
    cluster.pass_over()
    cluster.has_pods(cluster.pod_of(**crashed(9)))
    cluster.pass_over()
    cluster.edit(engine={"maxModelLen": 9998})
    cluster.pass_over()
    cluster.has_pods(cluster.pod_of(**crashed(9)))
    assert cluster.pass_over()["Ready"]["reason"] == "InvalidArgument"
    assert length(cluster) == "9998"


def test_of_several_failures_the_last_good_one_counts(cluster: MemoryCluster) -> None:
    cluster.edit(engine={"maxModelLen": 8888})  # before the first has failed three times
    cluster.pass_over()
    fail(cluster)


def test_a_suspended_service_proves_nothing(cluster: MemoryCluster) -> None:
    cluster.has_pods()
    cluster.edit(suspend=True)
    cluster.pass_over()
    assert cluster.live["status"]["rollout"]["complete"]
    cluster.edit(suspend=False)
    cluster.pass_over()
    fail(cluster)


@pytest.mark.parametrize(
    ("status", "seconds"),
    [
        (waiting("ImagePullBackOff"), STUCK_SECONDS),
        (waiting("CreateContainerConfigError"), STUCK_SECONDS),
        (UNSCHEDULABLE, UNSCHEDULABLE_SECONDS + grace_seconds(300)),
    ],
)
def test_what_may_pass_is_waited_for(
    cluster: MemoryCluster, status: dict[str, Any], seconds: float
) -> None:
    cluster.has_pods(cluster.pod_of(**status))
    cluster.now = later(seconds - 1)
    cluster.pass_over()
    assert length(cluster) == "9999"
    assert cluster.again is not None  # no event tells that the time is over
    cluster.now = later(seconds + 1)
    cluster.pass_over()
    assert length(cluster) == "512"


def test_no_place_is_no_hurry_while_old_pods_serve(cluster: MemoryCluster) -> None:
    new = cluster.pod_of(**UNSCHEDULABLE)
    old = cluster.pod_of(ready=True)
    old["metadata"]["annotations"] = {names.REVISION_ANNOTATION: "older"}
    cluster.has_pods(old, new)
    cluster.now = later(10 * UNSCHEDULABLE_SECONDS)
    cluster.pass_over()
    assert length(cluster) == "9999"
    cluster.has_pods(new)
    cluster.pass_over()
    assert length(cluster) == "512"


def test_an_edit_is_tried(cluster: MemoryCluster) -> None:
    fail(cluster)
    cluster.edit(engine={"maxModelLen": 1024})
    assert cluster.pass_over()["WorkloadReady"]["reason"] != "RolledBack"
    assert length(cluster) == "1024"
    assert names.FAILED_ANNOTATION not in cluster.deployment["metadata"]["annotations"]


def test_the_edit_taken_back_is_well(cluster: MemoryCluster) -> None:
    fail(cluster)
    cluster.has_pods(cluster.pod_of(ready=True))
    cluster.edit(engine={"maxModelLen": 512})
    assert cluster.pass_over()["Ready"]["status"] == "True"


def test_it_is_tried_once_more_when_asked(cluster: MemoryCluster) -> None:
    fail(cluster)
    cluster.has_pods(cluster.pod_of(ready=True))
    cluster.pass_over()
    cluster.edit(annotations={names.UPGRADE_ANNOTATION: "again"})
    cluster.pass_over()
    assert length(cluster) == "9999"
    cluster.has_pods(cluster.pod_of())
    cluster.pass_over()
    assert length(cluster) == "9999"
    fail(cluster)  # and back once more


def test_a_newer_operator_does_not_try_again(cluster: MemoryCluster) -> None:
    fail(cluster)
    cluster.image = "octavo-server:2"
    assert cluster.pass_over()["WorkloadReady"]["reason"] == "RolledBack"
    assert length(cluster) == "512"
    assert cluster.container["image"] == "octavo-server:1"


def test_an_upgrade_that_fails_goes_back_to_the_image_of_before() -> None:
    cluster = MemoryCluster()
    cluster.pass_over()
    cluster.has_pods(cluster.pod_of(ready=True))
    cluster.pass_over()
    cluster.image = "octavo-server:2"
    cluster.edit(annotations={names.UPGRADE_ANNOTATION: "1"})
    cluster.pass_over()
    assert cluster.container["image"] == "octavo-server:2"
    cluster.has_pods(cluster.pod_of(**crashed(3)))
    cluster.pass_over()
    assert cluster.container["image"] == "octavo-server:1"
    cluster.has_pods(cluster.pod_of(ready=True))
    told = cluster.pass_over()
    assert cluster.container["image"] == "octavo-server:1"
    assert told["Ready"]["status"] == "True"
    assert "octavo-server:2" in cluster.live["status"]["rollout"]["waiting"]


def test_it_still_scales_and_sleeps(cluster: MemoryCluster) -> None:
    fail(cluster)
    cluster.edit(replicas=3)
    cluster.pass_over()
    assert cluster.deployment["spec"]["replicas"] == 3
    cluster.edit(suspend=True)
    cluster.pass_over()
    assert cluster.deployment["spec"]["replicas"] == 0
    assert length(cluster) == "512"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"template": 1}'])
def test_what_somebody_wrote_into_the_annotations_breaks_nothing(
    cluster: MemoryCluster, text: str
) -> None:
    annotations = cluster.deployment["metadata"]["annotations"]
    annotations[names.LAST_GOOD_ANNOTATION] = annotations[names.FAILED_ANNOTATION] = text
    cluster.has_pods(cluster.pod_of(**crashed(3)))
    assert cluster.pass_over()["Ready"]["reason"] == "InvalidArgument"
    assert length(cluster) == "9999"


def test_the_way_back_is_known_before_the_pods_of_before_are_ready_again(
    cluster: MemoryCluster,
) -> None:
    fail(cluster)
    cluster.has_pods(cluster.pod_of())
    cluster.edit(annotations={names.UPGRADE_ANNOTATION: "again"})
    cluster.pass_over()
    assert length(cluster) == "9999"
    fail(cluster)
    cluster.edit(engine={"maxModelLen": 9998})
    cluster.pass_over()
    assert length(cluster) == "9998"
    fail(cluster)


def test_one_that_served_is_never_given_up_though_not_all_of_it_got_ready() -> None:
    """Where an autoscaler wants more than there is room for, no rollout is ever complete."""
    cluster = MemoryCluster(replicas=3, engine={"maxModelLen": 512})
    cluster.pass_over()
    cluster.has_pods(*[cluster.pod_of(ready=True) for _ in range(3)])
    cluster.pass_over()
    cluster.edit(engine={"maxModelLen": 1024})
    cluster.pass_over()
    cluster.has_pods(cluster.pod_of(ready=True), cluster.pod_of(**UNSCHEDULABLE))
    cluster.pass_over()
    cluster.has_pods(cluster.pod_of(), cluster.pod_of(**UNSCHEDULABLE))  # its probe failed once
    cluster.now = later(10 * UNSCHEDULABLE_SECONDS)
    cluster.pass_over()
    assert length(cluster) == "1024"


@pytest.mark.parametrize("between", [{"suspend": True}, {"replicas": 9}])
def test_what_served_is_gone_back_to_though_it_did_not_when_it_was_edited(
    between: dict[str, Any],
) -> None:
    cluster = MemoryCluster(engine={"maxModelLen": 512}, replicas=2)
    cluster.pass_over()
    cluster.has_pods(cluster.pod_of(ready=True), cluster.pod_of())  # never both
    cluster.pass_over()
    cluster.has_pods()
    cluster.edit(**between)
    cluster.pass_over()
    cluster.edit(engine={"maxModelLen": 9999}, suspend=False)
    cluster.pass_over()
    fail(cluster)


def test_a_rollout_that_stands_still_for_want_of_a_place_waits_beside_what_serves(
    cluster: MemoryCluster,
) -> None:
    new = cluster.pod_of(**UNSCHEDULABLE)
    old = cluster.pod_of(ready=True)
    old["metadata"]["annotations"] = {names.REVISION_ANNOTATION: "older"}
    cluster.has_pods(old, new)
    cluster.deployment["status"] = {
        "conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]
    }
    cluster.pass_over()
    assert length(cluster) == "9999"
    cluster.deployment["status"] = {
        "conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]
    }
    cluster.has_pods(old, cluster.pod_of())  # it has a place, and still does not get ready
    cluster.pass_over()
    assert length(cluster) == "512"


def test_a_pod_that_waited_for_its_node_may_still_wait_for_its_image(
    cluster: MemoryCluster,
) -> None:
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": later(3600)}
    cluster.has_pods(cluster.pod_of(**waiting("ErrImagePull"), conditions=[placed]))
    cluster.now = later(3600 + STUCK_SECONDS - 1)
    cluster.pass_over()
    assert length(cluster) == "9999"
    cluster.now = later(3600 + STUCK_SECONDS + 1)
    cluster.pass_over()
    assert length(cluster) == "512"


def test_an_annotation_too_deep_to_read_is_somebodys_words(cluster: MemoryCluster) -> None:
    deep = "[" * 100_000
    annotations = cluster.deployment["metadata"]["annotations"]
    annotations[names.LAST_GOOD_ANNOTATION] = annotations[names.FAILED_ANNOTATION] = deep
    annotations[names.TEMPLATE_ANNOTATION] = annotations[names.RENDERED_ANNOTATION] = deep
    annotations[names.PLAN_ANNOTATION] = deep
    cluster.has_pods(cluster.pod_of(**crashed(3)))
    cluster.pass_over()
    assert length(cluster) == "9999"
