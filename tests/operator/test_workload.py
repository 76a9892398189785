"""Which pods a pass asks for, where several reasons meet: a held edit, a plan, a way back."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.operator.memory_cluster import MemoryCluster
from tests.operator.services import NOW

from octavo_operator import conditions
from octavo_operator.conditions import FITS_ACCELERATOR, Condition
from octavo_operator.drain import grace_seconds
from octavo_operator.gpu_room import Room
from octavo_operator.kube import KubeError
from octavo_operator.render import deployment as deployment_module
from octavo_operator.rollback import HUB_SECONDS, UNSCHEDULABLE_SECONDS

FITS = Condition(FITS_ACCELERATOR, "True", conditions.FITS, "it fits")
IMPOSSIBLE = Condition(
    FITS_ACCELERATOR, "False", conditions.INVALID_TENSOR_PARALLEL_SIZE, "3 does not divide 32"
)
UNSCHEDULABLE = {
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
}
FETCHES = {"name": "octavo-fetch", "state": {"running": {}}}


def later(seconds: float) -> str:
    found = datetime.fromisoformat(NOW) + timedelta(seconds=seconds)
    return found.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def crashed(times: int, reason: str = "OutOfMemory", **more: Any) -> dict[str, Any]:
    ended = {"exitCode": 1, "message": json.dumps({"reason": reason, "message": "too large"})}
    octavo = {"name": "octavo", "restartCount": times - 1, "state": {"terminated": ended}}
    return {"containerStatuses": [octavo], **more}


def length(cluster: MemoryCluster) -> str:
    flag = "--max-model-len="
    (found,) = (each for each in cluster.container["args"] if each.startswith(flag))
    return str(found.removeprefix(flag))


def strategy(cluster: MemoryCluster) -> tuple[int, int]:
    found = cluster.deployment["spec"]["strategy"]["rollingUpdate"]
    return found["maxSurge"], found["maxUnavailable"]


def edited(room: Room, replicas: int = 1) -> MemoryCluster:
    """512 has served, 9999 rolls out; the pods of 512 are there, ready."""
    cluster = MemoryCluster(replicas=replicas, engine={"maxModelLen": 512})
    cluster.fit, cluster.room = FITS, room
    cluster.pass_over()
    cluster.has_pods(*[cluster.pod_of(ready=True) for _ in range(replicas)])
    cluster.pass_over()
    cluster.edit(engine={"maxModelLen": 9999})
    cluster.pass_over()
    assert length(cluster) == "9999"
    return cluster


def stands_still(cluster: MemoryCluster) -> None:
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    cluster.deployment["status"] = {"conditions": [late]}


# In an old pod's place.


def test_a_pod_that_waits_for_an_old_ones_drain_is_not_given_up() -> None:
    """spec.drain.seconds is 300 by default, and so is the patience with a pod without a node."""
    cluster = edited(Room.AFTER)
    assert strategy(cluster) == (0, 1)
    old = cluster.pods[0]
    old["metadata"]["deletionTimestamp"] = later(320)
    cluster.has_pods(old, cluster.pod_of(**UNSCHEDULABLE))
    cluster.now = later(UNSCHEDULABLE_SECONDS + 5)
    assert cluster.pass_over()["WorkloadReady"]["reason"] == "RollingOut"
    cluster.has_pods(cluster.pods[1])  # the scheduler has not looked again yet
    assert cluster.pass_over()["WorkloadReady"]["reason"] == "Unschedulable"
    assert length(cluster) == "9999"
    cluster.now = later(UNSCHEDULABLE_SECONDS + grace_seconds(300) + 5)
    assert cluster.pass_over()["WorkloadReady"]["reason"] == "RolledBack"


# The way back.


def test_a_way_back_that_waits_in_vain_beside_failing_pods_is_planned_anew() -> None:
    """The GPU that was spare is another's now, and pods that fail hold the service's own."""
    cluster = edited(Room.AFTER)
    failing = cluster.pod_of(**crashed(3))
    cluster.has_pods(failing)
    cluster.room = Room.NOW
    assert cluster.pass_over()["WorkloadReady"]["reason"] == "RolledBack"
    assert strategy(cluster) == (1, 0)
    cluster.room = Room.AFTER
    cluster.has_pods(failing, cluster.pod_of(**UNSCHEDULABLE))
    for minutes in range(0, 60, 5):
        cluster.now = later(60 * minutes + 61)
        cluster.pass_over()
    assert strategy(cluster) == (0, 1)
    assert length(cluster) == "512"


def test_what_served_while_an_edit_was_held_is_not_given_up() -> None:
    cluster = edited(Room.NOW)
    cluster.fit = IMPOSSIBLE
    cluster.edit(engine={"maxModelLen": 9999, "tensorParallelSize": 3})
    cluster.pass_over()
    cluster.has_pods(cluster.pod_of(ready=True))
    for _ in range(3):
        cluster.pass_over()
    cluster.has_pods(cluster.pod_of(**crashed(3)))  # an hour later
    cluster.pass_over()
    cluster.fit = FITS
    cluster.edit(engine={"maxModelLen": 9999})
    cluster.pass_over()
    assert length(cluster) == "9999"


def test_pods_that_fail_are_given_up_though_a_further_edit_is_held() -> None:
    cluster = edited(Room.NOW)
    cluster.fit = IMPOSSIBLE
    cluster.edit(engine={"maxModelLen": 9999, "tensorParallelSize": 3})
    cluster.has_pods(cluster.pod_of(**crashed(3)))
    assert cluster.pass_over()["WorkloadReady"]["reason"] == "RolledBack"
    assert cluster.pass_over()["WorkloadReady"]["reason"] == IMPOSSIBLE.reason
    assert length(cluster) == "512"


def test_restarts_of_the_fetch_are_not_the_servers() -> None:
    """The Hub blinked twice; then the server ended for the first time."""
    cluster = edited(Room.NOW)
    done = {"name": "octavo-fetch", "restartCount": 2, "ready": True,
            "state": {"terminated": {"exitCode": 0}}}  # fmt: skip
    cluster.has_pods(cluster.pod_of(**crashed(1, initContainerStatuses=[done])))
    cluster.pass_over()
    assert length(cluster) == "9999"


def test_a_hub_that_does_not_answer_is_waited_for() -> None:
    """What was before would ask it too."""
    cluster = edited(Room.AFTER)
    cluster.has_pods(cluster.pod_of(**crashed(5, "HubUnreachable")))
    cluster.now = later(HUB_SECONDS - 1)
    assert cluster.pass_over()["ModelReady"]["reason"] == "HubUnreachable"
    assert length(cluster) == "9999"
    cluster.now = later(HUB_SECONDS + 1)
    cluster.pass_over()
    assert length(cluster) == "512"  # a cache may have it, and the endpoint may be the mistake


# Pods that get on.


def test_a_download_that_goes_on_is_not_given_up_as_standing_still() -> None:
    cluster = edited(Room.NOW)
    old = cluster.pods[0]
    cluster.has_pods(old, cluster.pod_of(phase="Pending", initContainerStatuses=[FETCHES]))
    stands_still(cluster)
    told = cluster.pass_over()
    assert (told["WorkloadReady"]["reason"], length(cluster)) == ("RollingOut", "9999")


def test_a_server_has_its_time_from_when_its_model_is_there() -> None:
    cluster = edited(Room.NOW)
    old, hour = cluster.pods[0], 3600
    begun = {"type": "Initialized", "status": "True", "lastTransitionTime": later(hour)}
    cluster.has_pods(old, cluster.pod_of(conditions=[begun]))
    cluster.now = later(hour + 60)
    stands_still(cluster)
    assert cluster.pass_over()["WorkloadReady"]["reason"] == "RollingOut"
    cluster.now = later(2 * hour)
    stands_still(cluster)
    assert cluster.pass_over()["WorkloadReady"]["reason"] == "RolledBack"


# Passes without need.


@pytest.mark.parametrize("rolled_back", [False, True])
def test_a_replica_without_a_place_asks_for_no_pass_every_15_s(rolled_back: bool) -> None:
    cluster = edited(Room.NOW, replicas=2)
    if rolled_back:
        cluster.has_pods(cluster.pod_of(**crashed(3)))
        cluster.pass_over()
    cluster.has_pods(cluster.pod_of(ready=True), cluster.pod_of(**UNSCHEDULABLE))
    cluster.now = later(86400)
    cluster.pass_over()
    cluster.pass_over()
    assert cluster.again is None
    assert length(cluster) == ("512" if rolled_back else "9999")


# The container that fetches.


def test_an_edit_after_an_upgrade_does_not_fetch_with_an_image_that_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The default image stays the pinned one (docs/upgrading.md): it has no `octavo fetch`."""
    cluster = MemoryCluster(engine={"maxModelLen": 512})
    with monkeypatch.context() as before:  # an operator that had no such container
        before.setattr(deployment_module, "with_fetch", lambda _, pod: pod)
        cluster.pass_over()
        cluster.has_pods(cluster.pod_of(ready=True))
        cluster.pass_over()

    def fetched_with() -> list[str]:
        pod = cluster.deployment["spec"]["template"]["spec"]
        return [each["image"] for each in pod.get("initContainers", ())]

    cluster.image = "octavo-server:2"
    cluster.pass_over()
    assert fetched_with() == []
    for tokens in (1024, 2048):
        cluster.edit(engine={"maxModelLen": tokens})
        cluster.pass_over()
        assert (length(cluster), fetched_with()) == (str(tokens), [])
    cluster.edit(annotations={"octavo.dev/upgrade": "1"})
    cluster.pass_over()
    assert fetched_with() == ["octavo-server:2"]
    cluster.edit(engine={"maxModelLen": 512})
    cluster.pass_over()
    assert fetched_with() == ["octavo-server:2"]


def test_a_model_that_comes_from_the_hub_from_now_on_is_fetched() -> None:
    cluster = MemoryCluster(model={"uri": "pvc://models/tiny"})
    cluster.pass_over()
    cluster.edit(model={"uri": "hf://org/tiny"})
    cluster.pass_over()
    assert cluster.deployment["spec"]["template"]["spec"]["initContainers"]


# Pods that nobody would let in.

REFUSED = KubeError(403, "Forbidden", 'pods "tiny" is forbidden: violates PodSecurity "restricted"')


def test_what_serves_stays_while_pods_with_new_settings_are_refused() -> None:
    cluster = MemoryCluster(engine={"maxModelLen": 512})
    cluster.pass_over()
    assert cluster.trials == []  # nothing makes way
    cluster.has_pods(cluster.pod_of(ready=True))
    cluster.pass_over()
    cluster.judges = REFUSED
    cluster.edit(engine={"maxModelLen": 9999})
    told = cluster.pass_over()["WorkloadReady"]
    assert (told["reason"], length(cluster)) == ("PodsRefused", "512")
    assert 'violates PodSecurity "restricted"' in told["message"]
    (trial,) = cluster.trials
    assert "--max-model-len=9999" in trial["spec"]["containers"][0]["args"]
    assert (trial["metadata"]["namespace"], trial["metadata"]["name"]) == ("ns", "tiny-trial")
    cluster.judges = None
    assert cluster.pass_over()["WorkloadReady"]["reason"] == "RollingOut"
    assert length(cluster) == "9999"
    trials = len(cluster.trials)
    cluster.pass_over()
    assert len(cluster.trials) == trials


def test_it_is_tried_all_the_same_when_asked_or_when_nothing_serves() -> None:
    cluster = edited(Room.NOW)
    cluster.judges = REFUSED
    cluster.edit(engine={"maxModelLen": 8888}, annotations={"octavo.dev/upgrade": "1"})
    cluster.pass_over()
    assert length(cluster) == "8888"
    cluster.has_pods(cluster.pod_of())
    cluster.edit(engine={"maxModelLen": 7777})
    cluster.pass_over()
    assert length(cluster) == "7777"
