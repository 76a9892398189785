"""What stands beside a service's pods, and a service without pods."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable

import pytest

from tests.cluster.cluster import wait_for
from tests.cluster.hollow import steady
from tests.cluster.kube_api import Client, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import Operator
from tests.cluster.test_e2e import API, make, manifest, pods_of, wait_for_condition

pytestmark = pytest.mark.usefixtures("operator")


def test_suspended_and_back_with_as_many_pods(
    client: Client, namespace: str, nodes: Callable[..., Node]
) -> None:
    nodes(gpus=4, script=steady)
    make(client, namespace, manifest("a", {}, replicas=3))
    own = path_of(API, "InferenceService", namespace, "a")
    wait_for("all ready", lambda: client.get(own).get("status", {}).get("readyReplicas") == 3)
    # Nobody states a number now; the live one is to survive.
    client.patch(own, {"spec": {"replicas": None, "suspend": True}})
    wait_for("no pods", lambda: not pods_of(client, namespace, "a"))
    wait_for_condition(client, namespace, "a", lambda c: c.get("reason") == "Suspended")
    client.patch(own, {"spec": {"suspend": False}})
    wait_for_condition(client, namespace, "a", lambda c: c.get("status") == "True")
    wait_for("all ready again", lambda: client.get(own)["status"].get("readyReplicas") == 3)


def test_a_drained_node_takes_one_pod_at_a_time(
    client: Client, namespace: str, nodes: Callable[..., Node]
) -> None:
    nodes(gpus=4, script=steady)
    make(client, namespace, manifest("a", {}, replicas=3))
    budget = path_of("policy/v1", "PodDisruptionBudget", namespace, "a")
    wait_for("one may go", lambda: disruptions_allowed(client, budget) == 1)
    assert client.get(budget)["metadata"]["ownerReferences"][0]["kind"] == "InferenceService"

    # Edited and deleted by hand, it comes back; a field of somebody else stays.
    client.patch(
        budget, {"metadata": {"annotations": {"team": "x"}}, "spec": {"maxUnavailable": 3}}
    )

    def restored() -> bool:
        return bool(client.get(budget)["spec"]["maxUnavailable"] == 1)

    wait_for("our field is back", restored)
    assert client.get(budget)["metadata"]["annotations"] == {"team": "x"}
    client.delete(budget)
    wait_for("it is there again", lambda: client.find(budget) is not None)


def test_the_operator_counts_what_it_does(
    client: Client, namespace: str, nodes: Callable[..., Node], operator: Operator
) -> None:
    nodes(gpus=1, script=steady)
    make(client, namespace, manifest("a", {}))
    wait_for_condition(client, namespace, "a", lambda c: c.get("status") == "True")

    def read() -> dict[str, float]:
        url = f"http://127.0.0.1:{operator.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=5) as response:
            lines = response.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    wait_for(
        "it is seen to be ready", lambda: read()['octavo_operator_services{ready="True"}'] >= 1
    )
    found = read()
    assert found['octavo_operator_passes_total{result="done"}'] >= 1
    assert found['octavo_operator_api_requests_total{code="200",method="PATCH"}'] >= 1
    client.delete(path_of(API, "InferenceService", namespace, "a"))

    def forgotten() -> bool:
        return sum(v for name, v in read().items() if "_services{" in name) == 0

    wait_for("it is forgotten", forgotten)


def disruptions_allowed(client: Client, budget: str) -> int | None:
    found = client.find(budget)
    return None if found is None else found.get("status", {}).get("disruptionsAllowed")


def test_the_service_is_exposed_as_asked(
    client: Client, namespace: str, nodes: Callable[..., Node]
) -> None:
    nodes(gpus=1, script=steady)
    exposure = {"type": "NodePort", "annotations": {"example.com/a": "b"}}
    make(client, namespace, manifest("a", {}, service=exposure))
    path = path_of("v1", "Service", namespace, "a")
    made = wait_for("a Service", lambda: client.find(path))
    port = made["spec"]["ports"][0]["nodePort"]
    assert (made["spec"]["type"], made["metadata"]["annotations"]) == (
        "NodePort", {"example.com/a": "b"},
    )  # fmt: skip
    own = path_of(API, "InferenceService", namespace, "a")
    client.patch(own, {"spec": {"service": {"annotations": {"example.com/a": None}}}})

    def gone() -> bool:
        return not client.get(path)["metadata"].get("annotations")

    wait_for("the annotation is gone", gone)
    # What the API server chose stays.
    assert client.get(path)["spec"]["ports"][0]["nodePort"] == port
