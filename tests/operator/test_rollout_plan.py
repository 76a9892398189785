"""GPU pods are replaced beside their elders where a GPU is spare, else in their place."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.operator.memory_cluster import MemoryCluster
from tests.operator.services import NOW

from octavo_operator import conditions, names
from octavo_operator.conditions import FITS_ACCELERATOR, Condition
from octavo_operator.gpu_room import Room
from octavo_operator.rollout_plan import LOOK_AGAIN_SECONDS, WAIT_SECONDS

FITS = Condition(FITS_ACCELERATOR, "True", conditions.FITS, "it fits")
TOO_LARGE = Condition(FITS_ACCELERATOR, "False", conditions.DOES_NOT_FIT, "it is too large")
UNSCHEDULABLE = {
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
}


def serving(replicas: int = 1) -> MemoryCluster:
    cluster = MemoryCluster(replicas=replicas, engine={"maxModelLen": 512})
    cluster.room = Room.AFTER
    cluster.fit = FITS
    cluster.pass_over()
    assert cluster.looks == 0  # nothing is replaced
    cluster.has_pods(*[cluster.pod_of(ready=True) for _ in range(replicas)])
    cluster.pass_over()
    return cluster


def change(cluster: MemoryCluster, room: Room) -> dict[str, Any]:
    cluster.room = room
    cluster.edit(engine={"maxModelLen": 1024})
    return cluster.pass_over()


def strategy(cluster: MemoryCluster) -> tuple[int, int]:
    found = cluster.deployment["spec"]["strategy"]["rollingUpdate"]
    return found["maxSurge"], found["maxUnavailable"]


@pytest.mark.parametrize(
    ("room", "expected", "why"),
    [
        (Room.NOW, (1, 0), "a GPU is spare: new pods get ready before old ones go"),
        (Room.AFTER, (0, 1), "an outage is expected until the new pod is ready"),
        (Room.NONE, (1, 0), "it waits beside the old ones, which serve on"),
        (Room.UNKNOWN, (0, 1), "the operator cannot see whether a GPU is spare"),
    ],
)
def test_the_plan(room: Room, expected: tuple[int, int], why: str) -> None:
    cluster = serving()
    change(cluster, room)
    assert strategy(cluster) == expected
    assert why in cluster.live["status"]["rollout"]["plan"]


def test_no_outage_is_expected_of_several() -> None:
    cluster = serving(replicas=2)
    change(cluster, Room.AFTER)
    assert "outage" not in cluster.live["status"]["rollout"]["plan"]


@pytest.mark.parametrize(
    ("modes", "room", "expected"),
    [
        (["ReadWriteOnce"], Room.NOW, (0, 1)),
        (["ReadWriteOncePod"], Room.NOW, (0, 1)),
        (["ReadWriteOnce"], Room.NONE, (1, 0)),  # it gets no node, so that nothing is mounted
        (["ReadWriteOnce", "ReadWriteMany"], Room.NOW, (1, 0)),
        (["ReadWriteMany"], Room.AFTER, (0, 1)),
    ],
)
def test_a_claim_of_one_node_is_not_waited_for_on_another(
    modes: list[str], room: Room, expected: tuple[int, int]
) -> None:
    cluster = serving()
    cluster.claims = {"cache": modes}
    cluster.edit(cache={"persistentVolumeClaim": "cache"})
    change(cluster, room)
    assert strategy(cluster) == expected
    told = "the claim cache: a new pod takes an old one's place: an outage is expected"
    assert (told in cluster.live["status"]["rollout"]["plan"]) == (
        modes[0] != "ReadWriteMany" and expected == (0, 1)
    )


@pytest.mark.parametrize(
    ("modes", "expected"),
    [(["ReadWriteOnce"], (0, 1)), (["ReadOnlyMany", "ReadWriteOnce"], (1, 0)), (None, (1, 0))],
)
def test_so_are_models_on_a_claim_and_pods_without_gpus(
    modes: list[str] | None, expected: tuple[int, int]
) -> None:
    cluster = MemoryCluster(
        model={"uri": "pvc://models/a"}, engine={"device": "cpu", "maxModelLen": 512}
    )
    cluster.claims = {} if modes is None else {"models": modes}
    cluster.pass_over()
    cluster.has_pods(cluster.pod_of(ready=True))
    for tokens in (1024, 2048):
        cluster.edit(engine={"device": "cpu", "maxModelLen": tokens})
        for _ in range(2):
            cluster.pass_over()
            assert strategy(cluster) == expected


def test_the_plan_stays_when_its_own_pod_takes_the_spare_gpu() -> None:
    cluster = serving()
    change(cluster, Room.NOW)
    cluster.room, looks = Room.AFTER, cluster.looks
    cluster.has_pods(cluster.pods[0], cluster.pod_of())
    for _ in range(3):
        cluster.pass_over()
    assert strategy(cluster) == (1, 0)
    assert cluster.looks == looks


def test_a_spare_gpu_that_another_took_is_not_waited_for_long() -> None:
    cluster = serving()
    change(cluster, Room.NOW)
    cluster.room = Room.AFTER
    cluster.has_pods(cluster.pods[0], cluster.pod_of(**UNSCHEDULABLE))
    made = datetime.fromisoformat(NOW)
    cluster.now = (made + timedelta(seconds=WAIT_SECONDS - 1)).isoformat()
    cluster.pass_over()
    assert strategy(cluster) == (1, 0)
    assert cluster.again is not None
    cluster.now = (made + timedelta(seconds=WAIT_SECONDS + 1)).isoformat()
    cluster.pass_over()
    assert strategy(cluster) == (0, 1)


def test_pods_without_gpus_are_not_planned() -> None:
    cluster = MemoryCluster(engine={"device": "cpu"})
    cluster.room = Room.NONE
    cluster.pass_over()
    cluster.edit(engine={"device": "cpu", "maxModelLen": 512})
    cluster.pass_over()
    assert strategy(cluster) == (1, 0)
    assert cluster.looks == 0


def test_what_does_not_fit_does_not_replace_what_serves() -> None:
    cluster = serving()
    cluster.fit = TOO_LARGE
    told = change(cluster, Room.AFTER)["WorkloadReady"]
    assert (told["status"], told["reason"]) == ("False", "DoesNotFit")
    assert "what runs stays" in told["message"]
    assert "--max-model-len=512" in cluster.container["args"]
    # Its owner may know better.
    cluster.edit(annotations={names.UPGRADE_ANNOTATION: "1"})
    cluster.pass_over()
    assert "--max-model-len=1024" in cluster.container["args"]


def test_what_does_not_fit_starts_where_nothing_serves() -> None:
    cluster = serving()
    cluster.has_pods()
    cluster.fit = TOO_LARGE
    change(cluster, Room.AFTER)
    assert "--max-model-len=1024" in cluster.container["args"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"revision": 1}'])
def test_somebody_elses_plan_is_none(text: str) -> None:
    cluster = serving()
    change(cluster, Room.NOW)
    cluster.deployment["metadata"]["annotations"][names.PLAN_ANNOTATION] = text
    cluster.pass_over()
    assert strategy(cluster) == (0, 1)


def test_a_rollout_that_is_held_keeps_its_plan() -> None:
    """The old pod serves beside the new one: with another strategy it would go."""
    cluster = serving()
    change(cluster, Room.NOW)
    cluster.has_pods(cluster.pods[0], cluster.pod_of())
    cluster.fit = TOO_LARGE
    cluster.edit(engine={"maxModelLen": 2048})
    assert cluster.pass_over()["WorkloadReady"]["reason"] == "DoesNotFit"
    assert strategy(cluster) == (1, 0)


def test_nodes_are_looked_at_now_and_then_while_a_pod_waits_all_the_same() -> None:
    """A request for each node: a service that waits for days costs little."""
    cluster = serving()
    change(cluster, Room.NONE)
    cluster.has_pods(cluster.pods[0], cluster.pod_of(**UNSCHEDULABLE))
    made, looks = datetime.fromisoformat(NOW), cluster.looks
    seen = []
    for seconds in range(0, 1000, 15):
        cluster.now = (made + timedelta(seconds=seconds)).isoformat()
        cluster.pass_over()
        if cluster.looks > looks + len(seen):
            seen.append(seconds)
    assert seen == [WAIT_SECONDS + index * LOOK_AGAIN_SECONDS for index in range(4)]
    cluster.room = Room.AFTER
    cluster.now = (made + timedelta(seconds=2000)).isoformat()
    cluster.pass_over()
    assert strategy(cluster) == (0, 1)


def test_a_replica_without_a_place_is_no_rollout() -> None:
    cluster = serving(replicas=2)
    change(cluster, Room.NOW)
    cluster.has_pods(cluster.pod_of(ready=True), cluster.pod_of(**UNSCHEDULABLE))
    looks = cluster.looks
    cluster.now = (datetime.fromisoformat(NOW) + timedelta(days=1)).isoformat()
    cluster.pass_over()
    assert cluster.looks == looks
