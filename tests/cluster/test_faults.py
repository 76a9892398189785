"""The operator is killed at any moment of many rollouts: all of them end, and nothing lies.

`make soak` runs it with 50 services and 20 kills.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import wait_for
from tests.cluster.hollow import Behaviour
from tests.cluster.kube_api import Client, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import Operator
from tests.cluster.test_e2e import API, condition, make, manifest

SERVICES = int(os.environ.get("OCTAVO_FAULT_SERVICES", "10"))
KILLS = int(os.environ.get("OCTAVO_FAULT_KILLS", "3"))
REPLICAS = 2
SEED = int(os.environ.get("OCTAVO_FAULT_SEED", "0"))

CHILDREN = {"Deployment": "apps/v1", "Service": "v1", "PodDisruptionBudget": "policy/v1"}


def slow(pod: object) -> Behaviour:
    return Behaviour(start_after=0.1, ready_after=0.2, stop_after=0.1)


def is_ready(pod: dict[str, Any]) -> bool:
    found = pod.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in found)


class Witness:
    """Looks at every service and every pod, again and again: who says Ready must have a pod that
    is. (Of two pods a rollout takes one at a time, so there always is one.)"""

    def __init__(self, client: Client, namespace: str) -> None:
        self._client, self._namespace = client, namespace
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.lies: list[str] = []
        self.looks = self.claims = 0

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.05):
            services = self._client.list(path_of(API, "InferenceService", self._namespace))
            pods = self._client.list(path_of("v1", "Pod", self._namespace))
            ready = {
                each["metadata"]["labels"]["octavo.dev/service"] for each in pods if is_ready(each)
            }
            self.looks += 1
            for each in services:
                name = each["metadata"]["name"]
                if condition(each, "Ready").get("status") == "True":
                    self.claims += 1
                    if name not in ready:
                        self.lies.append(f"{name}: {each['status']}")


def test_killed_at_random_points_of_rollouts(
    client: Client, namespace: str, nodes: Callable[..., Node], operator: Operator
) -> None:
    chance = random.Random(SEED)
    nodes(gpus=SERVICES * REPLICAS, script=slow)
    services = [f"s{index}" for index in range(SERVICES)]
    where = path_of(API, "InferenceService", namespace)
    with Witness(client, namespace) as witness:
        for name in services:
            make(client, namespace, manifest(name, {"maxModelLen": 512}, replicas=REPLICAS))
        for kill in range(KILLS):
            if kill:
                for name in services:
                    change = {"spec": {"engine": {"maxModelLen": 512 + kill}}}
                    client.patch(f"{where}/{name}", change)
            time.sleep(chance.uniform(0, 1.5))
            operator.restart()

        def settled() -> bool:
            for each in client.list(where):
                status = each.get("status", {})
                if (
                    status.get("observedGeneration") != each["metadata"]["generation"]
                    or status.get("readyReplicas") != REPLICAS
                    or not status.get("rollout", {}).get("complete")
                    or condition(each, "Ready").get("status") != "True"
                ):
                    return False
            return True

        wait_for("all services", settled, 60 + 10 * SERVICES)
    assert witness.lies == []
    assert witness.claims > SERVICES
    operator.check()
    last = f"--max-model-len={512 + KILLS - 1}"
    for kind, version in CHILDREN.items():
        found = client.list(path_of(version, kind, namespace))
        assert sorted(each["metadata"]["name"] for each in found) == sorted(services), kind
    pods = client.list(path_of("v1", "Pod", namespace))
    assert len(pods) == SERVICES * REPLICAS
    assert all(last in pod["spec"]["containers"][0]["args"] for pod in pods)
    # One revision for each change, whatever was done twice.
    sets = client.list(path_of("apps/v1", "ReplicaSet", namespace))
    assert len(sets) <= SERVICES * KILLS
    print(f"{SERVICES} services, {KILLS} kills, {witness.looks} looks, {witness.claims} claims")


def test_a_namespace_that_goes_while_the_operator_is_dead(
    client: Client, namespace: str, nodes: Callable[..., Node], operator: Operator
) -> None:
    nodes(gpus=4, script=slow)
    name = f"{namespace}-gone"
    client.create(path_of("v1", "Namespace"), {"metadata": {"name": name}})
    make(client, name, manifest("a", {}))
    make(client, namespace, manifest("b", {}))
    one = path_of(API, "InferenceService", name, "a")
    other = path_of(API, "InferenceService", namespace, "b")
    wait_for("its pods", lambda: client.get(one).get("status", {}).get("readyReplicas") == 1)
    operator.stop()
    client.delete(path_of("v1", "Namespace", None, name))
    client.patch(other, {"spec": {"engine": {"maxModelLen": 512}}})
    wait_for("its end", lambda: client.find(one) is None)
    operator.restart()
    wait_for(
        "no namespace", lambda: client.find(path_of("v1", "Namespace", None, name)) is None, 60
    )

    def rolled() -> bool:
        found = client.get(other)["status"]
        return found["observedGeneration"] == client.get(other)["metadata"]["generation"] and bool(
            found["rollout"]["complete"]
        )

    wait_for("the other one", rolled)
    operator.check()


pytestmark = pytest.mark.timeout(600 + 60 * KILLS)
