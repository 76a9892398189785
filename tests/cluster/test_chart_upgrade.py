"""Helm upgrades a release of before: what its operator left goes on as it is, pod by pod."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.charts.test_chart import CHART
from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.conftest import Helm
from tests.cluster.hollow import steady
from tests.cluster.images import ROOT
from tests.cluster.kube_api import Client, Object, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import CRDS, Operator
from tests.cluster.test_e2e import API, pods_of

PREVIOUS = ROOT / "tests" / "charts" / "previous"
VALUES = ["--set=metricsApi.enabled=false"]
NEW_FIELD = "networkPolicy"

pytestmark = pytest.mark.timeout(180)


def leave(client: Client, namespace: str) -> list[str]:
    """What people and the operator of before applied; the services' names."""
    documents = list(yaml.safe_load_all((PREVIOUS / "services.yaml").read_text("utf-8")))
    owner: Object = {}
    names = []
    for each in documents:
        each["metadata"]["namespace"] = namespace
        if each["kind"] == "InferenceService":
            made = client.apply(each, "people")
            names.append(made["metadata"]["name"])
            owner = {
                "apiVersion": API, "kind": each["kind"], "controller": True,
                "name": names[-1], "uid": made["metadata"]["uid"], "blockOwnerDeletion": False,
            }  # fmt: skip
        else:
            each["metadata"]["ownerReferences"] = [owner]
            client.apply(each, "octavo")
    return names


def test_from_the_chart_of_before(
    cluster: Cluster, client: Client, namespace: str, kubectl: Callable[..., Any], helm: Helm,
    nodes: Callable[..., Node], operator: Operator,
) -> None:  # fmt: skip
    def fields() -> set[str]:
        schema = client.get(crd)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        return set(schema["properties"]["spec"]["properties"])

    def uids(version: str, kind: str) -> dict[str, str]:
        found = client.list(path_of(version, kind, namespace))
        return {each["metadata"]["name"]: each["metadata"]["uid"] for each in found}

    def templates() -> dict[str, Object]:
        found = client.list(path_of("apps/v1", "Deployment", namespace))
        return {
            each["metadata"]["name"]: each["spec"]["template"]
            for each in found
            if each["metadata"]["name"] in names
        }

    def pods() -> dict[str, list[str]]:
        return {
            name: sorted(pod["metadata"]["uid"] for pod in pods_of(client, namespace, name))
            for name in names
        }

    crd = path_of("apiextensions.k8s.io/v1", "CustomResourceDefinition", None)
    crd += "/inferenceservices.octavo.dev"
    operator.stop()
    kubectl("delete", "-f", str(CRDS))
    try:
        nodes(gpus=16, script=steady)
        kubectl("create", "priorityclass", "batch", "--value=1")
        helm("install", "next", str(PREVIOUS / "octavo"))
        cluster.wait_for_crd()
        assert NEW_FIELD not in fields()
        names = leave(client, namespace)
        made = {"claim": 2, "image-volume": 1, "llama3-8b": 1, "pod-template": 1, "suspended": 0}
        assert set(names) == set(made)
        wait_for("pods", lambda: {n: len(each) for n, each in pods().items()} == made, 30, pods)
        before, pods_before = templates(), pods()
        services = uids(API, "InferenceService")

        helm("upgrade", "next", str(CHART), *VALUES)
        assert NEW_FIELD in fields()
        # For a moment after a change of the CRD the API server has no storage.
        asked = ["get", "ois", "-n", namespace]
        wait_for("its storage", lambda: kubectl(*asked, check=False).returncode == 0)
        assert uids(API, "InferenceService") == services
        operator.restart("--image=octavo-server:next")  # as each release brings its own

        where = path_of(API, "InferenceService", namespace)

        def looked_at() -> bool:
            status = [each.get("status", {}) for each in client.list(where)]
            return all(each.get("conditions") for each in status)

        wait_for("a pass of each", looked_at, 60)
        # What a pass has written brings the next; then it rests.
        wait_for("rest", lambda: operator.requests_in(1.0) <= 5, 30)
        assert templates() == before
        assert pods() == pods_before
        assert uids(API, "InferenceService") == services
        # It does hold the reins.
        client.patch(f"{where}/llama3-8b", {"spec": {"engine": {"maxModelLen": 1024}}})
        wait_for("its rollout", lambda: templates()["llama3-8b"] != before["llama3-8b"])
        helm("uninstall", "next")
        assert uids(API, "InferenceService") == services
    finally:
        helm("uninstall", "next", "--ignore-not-found")
        kubectl("delete", "priorityclass", "batch", "--ignore-not-found")
        kubectl("apply", "-f", str(CRDS), "--server-side", "--force-conflicts")
        cluster.wait_for_crd()
        operator.restart()
