"""The operator is killed at any moment of many rollouts: all of them end, and nothing lies.

`make soak` runs it with 50 services and 20 kills.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.fleet import Fleet, slow
from tests.cluster.kube_api import Client, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import Operator
from tests.cluster.test_e2e import API, make, manifest
from tests.cluster.witness import Witness

SERVICES = int(os.environ.get("OCTAVO_FAULT_SERVICES", "10"))
KILLS = int(os.environ.get("OCTAVO_FAULT_KILLS", "3"))
REPLICAS = 2
SEED = int(os.environ.get("OCTAVO_FAULT_SEED", "0"))


def test_killed_at_random_points_of_rollouts(
    cluster: Cluster,
    client: Client,
    namespace: str,
    nodes: Callable[..., Node],
    operator: Operator,
) -> None:
    chance = random.Random(SEED)
    nodes(gpus=SERVICES * REPLICAS, script=slow)
    fleet = Fleet(client, namespace, SERVICES, REPLICAS)
    points = []
    with Witness(cluster.kubeconfig, namespace) as witness:
        fleet.make(512)
        for kill in range(KILLS):
            if kill:
                fleet.change(512 + kill)
            # While it is killed pods still come, of what it has written.
            fleet.wait_for(chance.randrange(fleet.pods * 3 // 4))
            operator.kill()
            points.append(fleet.serving())
            fleet.assert_rolling()
            operator.restart()
        fleet.wait_until_settled(60 + 10 * SERVICES)
    operator.check()
    fleet.judge(witness.history)
    history = witness.history
    print(
        f"{SERVICES} services, killed with {points} of {fleet.pods} new pods, "
        f"{len(history.moments)} writes, {history.claims()} claims, {len(history.gaps)} gaps"
    )


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
