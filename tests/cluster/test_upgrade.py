"""A newer operator with another default image: pods stay until their owner asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cluster.cluster import wait_for
from tests.cluster.hollow import steady
from tests.cluster.kube_api import Client, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import Operator
from tests.cluster.test_e2e import API, make, manifest, pods_of, wait_for_condition


def test_nothing_rolls_until_asked(
    client: Client, namespace: str, nodes: Callable[..., Node], operator: Operator
) -> None:
    nodes(gpus=4, script=steady)
    make(client, namespace, manifest("a", {}))
    own = path_of(API, "InferenceService", namespace, "a")
    wait_for_condition(client, namespace, "a", lambda c: c.get("status") == "True")
    (before,) = pods_of(client, namespace, "a")
    try:
        operator.restart("--image=octavo-server:newer")

        def rollout() -> dict[str, Any]:
            found: dict[str, Any] = client.get(own)["status"]["rollout"]
            return found

        wait_for("what waits", lambda: "octavo-server:newer" in rollout().get("waiting", ""))
        assert [each["metadata"]["uid"] for each in pods_of(client, namespace, "a")] == [
            before["metadata"]["uid"]
        ]
        client.patch(own, {"metadata": {"annotations": {"octavo.dev/upgrade": "1"}}})
        wait_for("a rollout", lambda: "octavo-server:newer" in rollout()["reason"])
        wait_for("its end", lambda: rollout()["complete"] and rollout()["updatedReplicas"] == 1)
        assert "waiting" not in rollout(), rollout()["waiting"]
        (after,) = pods_of(client, namespace, "a")
        assert after["spec"]["containers"][0]["image"] == "octavo-server:newer"
    finally:
        operator.restart()


def test_pod_defaults_wait_until_asked(
    client: Client, namespace: str, nodes: Callable[..., Node], operator: Operator, tmp_path: Path
) -> None:
    nodes(gpus=4, script=steady)
    queue = "kueue.x-k8s.io/queue-name"
    made = manifest("a", {})
    made["metadata"]["labels"] = {queue: "search"}
    make(client, namespace, made)
    own = path_of(API, "InferenceService", namespace, "a")
    wait_for_condition(client, namespace, "a", lambda c: c.get("status") == "True")
    (before,) = pods_of(client, namespace, "a")
    defaults = tmp_path / "defaults.yaml"
    defaults.write_text(
        f"inheritLabels: [{queue}]\n"
        "tolerations: [{key: dedicated, operator: Exists}]\n"
        "env: [{name: NO_PROXY, value: .svc}]\n"
    )

    def rollout() -> dict[str, Any]:
        found: dict[str, Any] = client.get(own)["status"]["rollout"]
        return found

    try:
        operator.restart(f"--pod-defaults={defaults}")
        wait_for("what waits", lambda: "renders pods differently" in rollout().get("waiting", ""))
        assert [each["metadata"]["uid"] for each in pods_of(client, namespace, "a")] == [
            before["metadata"]["uid"]
        ]
        client.patch(own, {"metadata": {"annotations": {"octavo.dev/upgrade": "1"}}})

        def followed() -> bool:
            found = pods_of(client, namespace, "a")
            return [each["metadata"]["labels"].get(queue) for each in found] == ["search"]

        wait_for("a pod with the label", followed)
        (after,) = pods_of(client, namespace, "a")
        assert {"name": "NO_PROXY", "value": ".svc"} in after["spec"]["containers"][0]["env"]
        assert "dedicated" in [each.get("key") for each in after["spec"]["tolerations"]]
        # Without them again, nothing rolls either.
        operator.restart()
        wait_for("what waits", lambda: "renders pods differently" in rollout().get("waiting", ""))
        assert [each["metadata"]["uid"] for each in pods_of(client, namespace, "a")] == [
            after["metadata"]["uid"]
        ]
    finally:
        operator.restart()
