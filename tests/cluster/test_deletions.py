"""What is deleted behind the operator's back: a Deployment, and the CRD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.hollow import steady
from tests.cluster.kube_api import Client, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import CRDS, Operator
from tests.cluster.processes import DaemonFailed
from tests.cluster.test_e2e import API, make, manifest, wait_for_condition

pytestmark = pytest.mark.usefixtures("operator")


def test_a_deleted_deployment_comes_back_with_its_replicas(
    client: Client, namespace: str, nodes: Callable[..., Node]
) -> None:
    nodes(gpus=4, script=steady)
    make(client, namespace, manifest("a", {}, replicas=3))
    wait_for_condition(client, namespace, "a", lambda c: c.get("status") == "True")
    own = path_of(API, "InferenceService", namespace, "a")
    wait_for("all ready", lambda: client.get(own)["status"].get("readyReplicas") == 3)
    client.patch(own, {"spec": {"replicas": None}})
    deployment = path_of("apps/v1", "Deployment", namespace, "a")
    uid = client.get(deployment)["metadata"]["uid"]
    client.delete(deployment)

    def again() -> dict[str, Any] | None:
        found = client.find(deployment)
        return found if found is not None and found["metadata"]["uid"] != uid else None

    assert wait_for("a new Deployment", again)["spec"]["replicas"] == 3


def test_without_its_crd_the_operator_ends_in_plain_words(
    cluster: Cluster,
    kubectl: Callable[..., Any],
    namespace: str,
    client: Client,
    operator: Operator,
) -> None:
    """Its Deployment starts it again; `kubectl logs --previous` says why it ended."""

    def ended() -> bool:
        try:
            operator.check()
        except DaemonFailed:
            return True
        return False

    make(client, namespace, manifest("a", {"device": "cpu"}))
    wait_for_condition(client, namespace, "a", bool)  # it watches by now
    before = len(operator.log.read_text(errors="replace"))
    kubectl("delete", "-f", str(CRDS))
    try:
        wait_for("its end", ended, 60)  # the watch is cut some seconds after
        log = operator.log.read_text(errors="replace")[before:]
        assert "Traceback" not in log, log[-1500:]
        assert "apply crds/inferenceservice.yaml first" in log, log[-1500:]
    finally:
        kubectl("apply", "-f", str(CRDS))
        cluster.wait_for_crd()
        operator.restart()
