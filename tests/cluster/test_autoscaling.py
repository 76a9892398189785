"""A real HPA controller scales by what pods say, and stands still where they say nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster.cluster import Timeout, wait_for
from tests.cluster.hollow import Behaviour
from tests.cluster.kube_api import Client, Object, path_of
from tests.cluster.metrics_api_process import LoadServer, MetricsApi
from tests.cluster.node_agent import Node
from tests.cluster.test_e2e import API, condition, make, manifest, wait_for_condition

ADDRESSES = ("127.7.9.1", "127.7.9.2", "127.7.9.3")
QUICK = {
    "scaleUp": {"policies": [{"type": "Pods", "value": 4, "periodSeconds": 5}]},
    "scaleDown": {
        "stabilizationWindowSeconds": 3,
        "policies": [{"type": "Pods", "value": 4, "periodSeconds": 5}],
    },
}


@pytest.fixture
def servers() -> Iterator[dict[str, LoadServer]]:
    """By address."""
    made = {address: LoadServer(address) for address in ADDRESSES}
    yield made
    for each in made.values():
        each.stop()


class Scaled:
    """The InferenceService `a`, of one to three pods, in whose place the servers speak."""

    def __init__(self, client: Client, namespace: str, servers: dict[str, LoadServer]) -> None:
        self.client, self.namespace, self.servers = client, namespace, servers
        self.path = path_of(API, "InferenceService", namespace, "a")
        scaling = {"maxReplicas": 3, "targetQueueDepth": 5, "behavior": QUICK}
        make(client, namespace, manifest("a", {"maxNumSeqs": 100}, autoscaling=scaling))
        wait_for_condition(client, namespace, "a", lambda c: c.get("reason") == "Serving")

    def each_has(self, waiting: int, running: int) -> None:
        for each in self.servers.values():
            each.load |= {"waiting": waiting, "running": running}

    def replicas(self) -> int:
        return int(self.client.get(self.path)["spec"]["replicas"])

    def ready(self) -> int:
        return int(self.client.get(self.path)["status"].get("readyReplicas", 0))

    def says(self) -> dict[str, Any]:
        return condition(self.client.get(self.path), "AutoscalingReady")

    def wait(self, what: str, found: Callable[[], Any], seconds: float = 40) -> Any:
        def seen() -> object:
            hpa = path_of("autoscaling/v2", "HorizontalPodAutoscaler", self.namespace, "a")
            return self.says(), (self.client.find(hpa) or {}).get("status")

        return wait_for(what, found, seconds, seen)


@pytest.fixture
def scaled(
    client: Client,
    namespace: str,
    nodes: Callable[..., Node],
    servers: dict[str, LoadServer],
    metrics_api: MetricsApi,
) -> Scaled:
    free, given = iter(ADDRESSES), dict[str, str]()

    def script(pod: Object) -> Behaviour:
        name = pod["metadata"]["name"]
        if name not in given:
            given[name] = next(free)
        return Behaviour(address=given[name], ready_after=0.5)

    nodes(gpus=len(ADDRESSES), script=script)
    return Scaled(client, namespace, servers)


@pytest.mark.timeout(240)
def test_up_with_the_queue_held_by_the_demand_and_down(scaled: Scaled) -> None:
    scaled.wait("a look", lambda: scaled.says().get("reason") == "Scaling")
    assert "between 1 and 3 pods, by octavo_queue_depth" in scaled.says()["message"]
    assert scaled.replicas() == 1
    scaled.each_has(waiting=14, running=100)
    scaled.wait("three", lambda: scaled.replicas() == 3, 30)
    scaled.wait("all of them", lambda: scaled.ready() == 3)

    # There is no queue any more, because there are three: two could not take it.
    scaled.each_has(waiting=0, running=60)
    wait_held(scaled, 3, 15)

    # Nobody answers: it stays as it is, and says why and since when.
    for each in scaled.servers.values():
        each.broken = True
    told = scaled.wait("no figures", lambda: no_metrics(scaled), 70)
    assert "no sample for 3" in told and "(3 of 3 pods failed)" in told
    wait_held(scaled, 3, 9)
    for each in scaled.servers.values():
        each.broken = False
    scaled.wait("by itself again", lambda: scaled.says()["reason"] == "Scaling")
    assert scaled.replicas() == 3

    scaled.each_has(waiting=0, running=0)
    scaled.wait("one", lambda: scaled.replicas() == 1)
    scaled.client.patch(scaled.path, {"spec": {"suspend": True}})
    hpa = path_of("autoscaling/v2", "HorizontalPodAutoscaler", scaled.namespace, "a")
    scaled.wait("none while suspended", lambda: scaled.client.find(hpa) is None)
    assert scaled.replicas() == 1


def no_metrics(scaled: Scaled) -> str:
    said = scaled.says()
    # At first one of them may be silent for longer than the others.
    all_of_them = said["reason"] == "NoMetrics" and "3 of 3" in said["message"]
    return str(said["message"]) if all_of_them else ""


def wait_held(scaled: Scaled, replicas: int, seconds: float) -> None:
    """For so long, of which the controller looks at it every three, nothing changes."""
    with pytest.raises(Timeout):
        wait_for("another number", lambda: scaled.replicas() != replicas, seconds)
