"""Spare GPUs, counted from nodes and the pods on them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo_operator.gpu_room import MOST_NODES, GpuRoom, Room
from octavo_operator.kube import KubeError
from octavo_operator.names import GPU_RESOURCE

TAINT = {"key": GPU_RESOURCE, "effect": "NoSchedule", "value": "present"}
TOLERATION = {"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}


def node(name: str, gpus: int, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"zone": name}},
        "spec": spec,
        "status": {"allocatable": {GPU_RESOURCE: str(gpus)} if gpus else {"cpu": "8"}},
    }


def pod(name: str, gpus: int, phase: str = "Running") -> dict[str, Any]:
    limits = {GPU_RESOURCE: str(gpus)} if gpus else {}
    return {
        "metadata": {"namespace": "ns", "name": name},
        "spec": {"containers": [{"name": "a", "resources": {"limits": limits}}, {"name": "b"}]},
        "status": {"phase": phase},
    }


def template(gpus: int, **spec: Any) -> dict[str, Any]:
    return {"spec": {**pod("x", gpus)["spec"], "tolerations": [TOLERATION], **spec}}


class Nodes:
    def __init__(self, *nodes: dict[str, Any], **pods: list[dict[str, Any]]) -> None:
        self.nodes, self.pods, self.code = list(nodes), pods, 200

    async def list(
        self, _: str, kind: str, namespace: None, field_selector: str = ""
    ) -> list[dict[str, Any]]:
        if self.code != 200:
            raise KubeError(self.code, "", "")
        if kind == "Node":
            return self.nodes
        return self.pods.get(field_selector.removeprefix("spec.nodeName="), [])


def look(nodes: Any, wanted: dict[str, Any], own: tuple[str, ...] = (), node: str = "a") -> Room:
    """`own` pods are on `node`."""
    return asyncio.run(GpuRoom(nodes).look(wanted, dict.fromkeys(own, node)))


def test_a_gpu_is_spare_where_pods_hold_fewer() -> None:
    nodes = Nodes(node("a", 2), a=[pod("p", 1)])
    assert look(nodes, template(1)) is Room.NOW
    assert look(nodes, template(2)) is Room.NONE
    assert look(nodes, template(2), own=("ns/p",)) is Room.AFTER
    assert look(nodes, template(2), own=("other/p",)) is Room.NONE
    assert look(nodes, template(3), own=("ns/p",)) is Room.NONE


def test_pods_that_wait_for_a_node_will_take_what_is_free() -> None:
    nodes = Nodes(node("a", 2), a=[pod("p", 1)])
    nodes.pods[""] = [pod("waits", 1, "Pending"), pod("small", 0, "Pending")]
    assert look(nodes, template(1)) is Room.AFTER
    assert look(nodes, template(1), own=("ns/p",)) is Room.AFTER
    assert look(nodes, template(1), own=("ns/waits",)) is Room.NOW


def test_those_that_cannot_come_to_a_node_take_nothing_of_it() -> None:
    nodes = Nodes(node("a", 2), a=[pod("p", 1)])
    elsewhere = pod("waits", 1, "Pending")
    elsewhere["spec"]["nodeSelector"] = {"zone": "b"}
    nodes.pods[""] = [elsewhere]
    assert look(nodes, template(1)) is Room.NOW


def test_those_too_large_for_a_node_or_on_their_way_out_take_nothing_of_it() -> None:
    nodes = Nodes(node("a", 2), a=[pod("p", 1)])
    nodes.pods[""] = [pod("large", 4, "Pending")]
    assert look(nodes, template(1)) is Room.NOW
    going = pod("going", 1, "Pending")
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    nodes.pods[""] = [going]
    assert look(nodes, template(1)) is Room.NOW


def test_a_gpu_without_cpu_or_memory_beside_it_is_not_spare() -> None:
    small = node("a", 2)
    small["status"]["allocatable"] |= {"cpu": "7500m", "memory": "30Gi", "pods": "110"}
    held, asked = pod("p", 1), template(1)
    for each in (held["spec"], asked["spec"]):
        each["containers"][1]["resources"] = {"requests": {"cpu": "4"}, "limits": {"cpu": "8"}}
    nodes = Nodes(small, a=[held])
    assert look(nodes, asked) is Room.NONE
    assert look(nodes, asked, own=("ns/p",)) is Room.AFTER
    small["status"]["allocatable"]["cpu"] = "8"
    assert look(nodes, asked) is Room.NOW
    small["status"]["allocatable"]["pods"] = "1"
    assert look(nodes, asked, own=("ns/p",)) is Room.AFTER


def test_gpus_of_two_nodes_are_not_added_up() -> None:
    nodes = Nodes(node("a", 2), node("b", 2), a=[pod("p", 1)], b=[pod("q", 1)])
    assert look(nodes, template(2)) is Room.NONE


def test_one_of_its_own_pods_goes_at_a_time() -> None:
    nodes = Nodes(node("a", 4), a=[pod("p", 2), pod("q", 2)])
    assert look(nodes, template(4), own=("ns/p", "ns/q")) is Room.NONE


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_pods_that_ended_hold_nothing(phase: str) -> None:
    assert look(Nodes(node("a", 1), a=[pod("p", 1, phase)]), template(1)) is Room.NOW


def test_an_init_containers_gpus_count_once() -> None:
    held = pod("p", 1)
    held["spec"]["initContainers"] = held["spec"]["containers"][:1]
    assert look(Nodes(node("a", 2), a=[held]), template(1)) is Room.NOW


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ({"unschedulable": True}, Room.NONE),
        ({"taints": [TAINT]}, Room.NOW),
        ({"taints": [TAINT, {"key": "other", "effect": "NoExecute"}]}, Room.NONE),
        ({"taints": [{"key": "other", "effect": "PreferNoSchedule"}]}, Room.NOW),
    ],
)
def test_nodes_that_do_not_take_it(spec: dict[str, Any], found: Room) -> None:
    assert look(Nodes(node("a", 1, **spec)), template(1)) is found


@pytest.mark.parametrize(
    "toleration",
    [
        {"operator": "Exists"},
        {"key": GPU_RESOURCE, "value": "present"},
        {"key": GPU_RESOURCE, "operator": "Exists", "effect": ""},
    ],
)
def test_tolerations(toleration: dict[str, str]) -> None:
    nodes = Nodes(node("a", 1, taints=[TAINT]))
    assert look(nodes, template(1, tolerations=[toleration])) is Room.NOW
    assert (
        look(nodes, template(1, tolerations=[{**toleration, "effect": "NoExecute"}])) is Room.NONE
    )


def test_the_node_selector_counts() -> None:
    nodes = Nodes(node("a", 1), node("b", 4))
    assert look(nodes, template(2, nodeSelector={"zone": "a"})) is Room.NONE
    assert look(nodes, template(2, nodeSelector={"zone": "b"})) is Room.NOW


@pytest.mark.parametrize(
    "wrong",
    [
        {"nodeSelector": ["zone"]},
        {"tolerations": "all"},
        {"containers": [{"resources": {"limits": {GPU_RESOURCE: "x"}}}]},
    ],
)
def test_a_wrong_template_is_the_api_servers_to_refuse(wrong: dict[str, Any]) -> None:
    assert look(Nodes(node("a", 1, taints=[TAINT])), template(1, **wrong)) is Room.UNKNOWN


def test_without_the_right_to_look() -> None:
    nodes = Nodes(node("a", 1))
    nodes.code = 403
    assert look(nodes, template(1)) is Room.UNKNOWN
    nodes.code = 500
    with pytest.raises(KubeError):
        look(nodes, template(1))


def test_of_a_very_large_cluster_some_nodes_are_looked_into() -> None:
    nodes = Nodes(*[node(f"n{index}", 1) for index in range(MOST_NODES + 2)])
    nodes.pods = {f"n{index}": [pod(f"p{index}", 1)] for index in range(MOST_NODES + 1)}
    assert look(nodes, template(1)) is Room.UNKNOWN  # the last of all is free, and not looked into
    last = f"n{MOST_NODES}"
    assert look(nodes, template(1), own=(f"ns/p{MOST_NODES}",), node=last) is Room.AFTER
    nodes.pods["n7"] = []
    assert look(nodes, template(1)) is Room.NOW
    few = [node(f"n{index}", 0) for index in range(MOST_NODES)]
    assert look(Nodes(*few, node("last", 1)), template(1)) is Room.NOW


def test_pods_that_may_not_be_scheduled_yet_take_nothing() -> None:
    """Queues (Kueue, say) keep hundreds behind spec.schedulingGates."""
    queued = pod("job", 1, phase="Pending")
    queued["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    assert look(Nodes(node("a", 1), **{"": [queued]}), template(1)) is Room.NOW


def test_another_pods_amount_with_an_exponent_is_an_amount() -> None:
    """129e6 is one of the documentation's own examples of memory."""
    other = pod("p", 1)
    other["spec"]["containers"][1]["resources"] = {"requests": {"memory": "129e6"}}
    assert look(Nodes(node("a", 2), a=[other]), template(1)) is Room.NOW
