"""Rollouts of GPU services: beside or in place, and back where the new pods fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.cluster.cluster import wait_for
from tests.cluster.hollow import Behaviour
from tests.cluster.kube_api import Client, Object, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import Operator
from tests.cluster.test_e2e import API, condition, make, manifest, pods_of, wait_for_condition

SAID = json.dumps({"reason": "InvalidArgument", "message": "that is too long"})


def script(pod: Object) -> Behaviour:
    """Ready after a moment; a pod with a length of 9999 ends at once and says why."""
    args = pod["spec"]["containers"][0]["args"]
    if "--max-model-len=9999" in args:
        return Behaviour(exits_after=0.0, message=SAID)
    return Behaviour(ready_after=0.5)


class Service:
    """The InferenceService `a`, with what watches its pods."""

    def __init__(self, client: Client, namespace: str, replicas: int) -> None:
        self.client, self.namespace = client, namespace
        self.wait("those of tests before to be gone", self.is_alone)
        self.own = path_of(API, "InferenceService", namespace, "a")
        make(client, namespace, {**manifest("a", {"maxModelLen": 512}, replicas=replicas)})
        wait_for_condition(client, namespace, "a", lambda c: c.get("reason") == "Serving")
        self.wait("all of them", lambda: self.status["rollout"]["complete"])

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(self.own)["status"]
        return found

    def change(self, length: int) -> None:
        self.client.patch(self.own, {"spec": {"engine": {"maxModelLen": length}}})

    def wait(self, what: str, found: Callable[[], Any]) -> None:
        wait_for(what, found)

    def is_alone(self) -> bool:
        """No pod of another namespace waits for a GPU that is to be spare here."""
        pods = self.client.list(path_of("v1", "Pod"))
        return not any(
            not pod["spec"].get("nodeName") and pod["metadata"]["namespace"] != self.namespace
            for pod in pods
        )

    def uids(self) -> set[str]:
        return {pod["metadata"]["uid"] for pod in pods_of(self.client, self.namespace, "a")}

    def ready(self) -> int:
        return sum(
            any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
            for pod in pods_of(self.client, self.namespace, "a")
            if not pod["metadata"].get("deletionTimestamp")
            and (conditions := pod["status"].get("conditions") or [])
        )

    def fewest_ready_until(self, length: int) -> int:
        """Changes the length; the fewest ready pods that a look saw before all are replaced."""
        before, fewest = self.uids(), self.ready()
        self.change(length)

        def replaced() -> bool:
            nonlocal fewest
            fewest = min(fewest, self.ready())
            rollout = self.status["rollout"]
            return not before & self.uids() and bool(rollout["complete"])

        self.wait("other pods", replaced)
        return fewest


def test_a_spare_gpu_means_no_outage(
    client: Client, namespace: str, nodes: Callable[..., Node], operator: Operator
) -> None:
    nodes(gpus=2, script=script)
    service = Service(client, namespace, replicas=1)
    assert service.fewest_ready_until(1024) == 1
    assert service.status["rollout"]["plan"].startswith("a GPU is spare")


def test_without_one_the_outage_is_told(
    client: Client, namespace: str, nodes: Callable[..., Node], operator: Operator
) -> None:
    nodes(gpus=1, script=script)
    service = Service(client, namespace, replicas=1)
    service.change(1024)
    service.wait(
        "a plan", lambda: "outage is expected" in service.status["rollout"].get("plan", "")
    )
    service.wait("its end", lambda: service.status["rollout"]["complete"])
    assert service.status["rollout"]["reason"] == "spec.engine.maxModelLen: 512 -> 1024"


def test_a_failed_revision_goes_back(
    client: Client, namespace: str, nodes: Callable[..., Node], operator: Operator
) -> None:
    nodes(gpus=1, script=script, backoff_seconds=0.3)
    service = Service(client, namespace, replicas=1)
    revision = service.status["rollout"]["revision"]
    service.change(9999)
    service.wait("new pods", lambda: service.status["rollout"]["revision"] != revision)

    def back() -> bool:
        status = service.status
        told = condition({"status": status}, "WorkloadReady")
        return (
            told["reason"] == "RolledBack"
            and "that is too long" in told["message"]
            and status["rollout"]["revision"] == revision
            and status["readyReplicas"] == 1
            and bool(status["rollout"]["complete"])
        )

    service.wait("the pods of before", back)
    operator.restart()  # it remembers nothing
    uids = service.uids()
    client.patch(service.own, {"metadata": {"labels": {"touched": "yes"}}})
    service.wait("a pass", back)
    assert service.uids() == uids
    service.change(256)
    wait_for_condition(client, namespace, "a", lambda c: c.get("reason") == "Serving")
    assert service.status["rollout"]["reason"] == "spec.engine.maxModelLen: 512 -> 256"


def test_of_several_pods_the_others_serve_on(
    client: Client, namespace: str, nodes: Callable[..., Node], operator: Operator
) -> None:
    nodes(gpus=3, script=script, backoff_seconds=0.3)
    service = Service(client, namespace, replicas=3)
    fewest = 3
    service.change(9999)

    def back() -> bool:
        nonlocal fewest
        fewest = min(fewest, service.ready())
        told = condition({"status": service.status}, "WorkloadReady")
        return told["reason"] == "RolledBack" and service.ready() == 3

    service.wait("the pods of before", back)
    assert fewest == 2


def test_pods_that_would_be_refused_take_nobodys_place(
    client: Client, namespace: str, nodes: Callable[..., Node], operator: Operator
) -> None:
    """Pod Security lets the Deployment pass, and would refuse its pods once the old one is gone."""
    nodes(gpus=1, script=script)
    service = Service(client, namespace, replicas=1)
    before = service.uids()
    strict = {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    client.patch(path_of("v1", "Namespace", None, namespace), {"metadata": strict})
    client.patch(service.own, {"spec": {"podTemplate": {"spec": {"hostNetwork": True}}}})
    found = wait_for_condition(client, namespace, "a", lambda c: c.get("reason") == "PodsRefused")
    assert "violates PodSecurity" in found["message"] and "hostNetwork" in found["message"]
    assert service.uids() == before and service.ready() == 1
    deployment = client.get(path_of("apps/v1", "Deployment", namespace, "a"))
    assert "hostNetwork" not in deployment["spec"]["template"]["spec"]
    client.patch(service.own, {"spec": {"podTemplate": None}})
    wait_for_condition(client, namespace, "a", lambda c: c.get("reason") == "Serving")
    assert service.uids() == before
    service.change(1024)  # what is let in replaces it
    service.wait("another pod", lambda: service.ready() == 1 and not before & service.uids())
