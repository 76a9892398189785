"""Who says how many pods: the manifest, or whoever uses /scale."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster.cluster import wait_for
from tests.cluster.hollow import steady
from tests.cluster.kube_api import ApiError, Client, path_of
from tests.cluster.node_agent import Node
from tests.cluster.test_e2e import API, make, manifest, wait_for_condition

pytestmark = pytest.mark.usefixtures("operator")

SSA = "application/apply-patch+yaml"


def test_an_absent_number_is_written_and_then_left_to_scale(
    client: Client, namespace: str, nodes: Callable[..., Node]
) -> None:
    nodes(gpus=4, script=steady)
    service = manifest("a", {}, autoscaling={"minReplicas": 2, "maxReplicas": 4})
    own = path_of(API, "InferenceService", namespace, "a")
    apply = f"{own}?fieldManager=gitops&force=false"
    client.patch(apply, service, SSA)
    wait_for("the first number", lambda: client.get(own)["spec"].get("replicas") == 2)
    scale = client.get(f"{own}/scale")
    assert scale["spec"]["replicas"] == 2
    wait_for_condition(client, namespace, "a", lambda c: c.get("status") == "True")
    # As an autoscaler does it.
    client.patch(f"{own}/scale", {"spec": {"replicas": 3}})
    wait_for("three pods", lambda: client.get(own)["status"].get("readyReplicas") == 3)
    # As a GitOps tool does it, again and again.
    client.patch(apply, service, SSA)
    found = client.get(own)
    assert found["spec"]["replicas"] == 3
    assert client.get(f"{own}/scale")["status"]["selector"]
    # As `kubectl replace` does it: the live number comes back.
    client.patch(own, {"spec": {"replicas": None}})
    wait_for("the number again", lambda: client.get(own)["spec"].get("replicas") == 3)
    deployment = client.get(path_of("apps/v1", "Deployment", namespace, "a"))
    assert deployment["spec"]["replicas"] == 3


def test_replicas_and_autoscaling_on_create_alone(client: Client, namespace: str) -> None:
    both = manifest("a", {}, replicas=2, autoscaling={"maxReplicas": 4})
    with pytest.raises(ApiError, match=r"spec\.replicas.*leave replicas out"):
        make(client, namespace, both)
    make(client, namespace, manifest("a", {}, replicas=2))
    own = path_of(API, "InferenceService", namespace, "a")
    client.patch(own, {"spec": {"autoscaling": {"maxReplicas": 4}}})
    assert client.get(own)["spec"]["replicas"] == 2
