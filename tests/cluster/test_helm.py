"""The chart on a real control plane: installed, upgraded, uninstalled, by Helm itself."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.test_chart import CHART
from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.conftest import Helm
from tests.cluster.hollow import steady
from tests.cluster.kube_api import Client, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import CRDS, Operator
from tests.cluster.tcp_proxy import TcpProxy
from tests.cluster.test_e2e import API, make, manifest, pod_logs, wait_for_condition


def older(folder: Path) -> Path:
    """The chart with a CRD that lacks a field."""
    chart = folder / "octavo"
    shutil.copytree(CHART, chart)
    path = chart / "files" / "inferenceservice.yaml"
    crd = yaml.safe_load(path.read_text(encoding="utf-8"))
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    del schema["properties"]["spec"]["properties"]["suspend"]
    path.write_text(yaml.safe_dump(crd), encoding="utf-8")
    return chart


def test_install_upgrade_uninstall(
    cluster: Cluster, client: Client, namespace: str, kubectl: Callable[..., Any], helm: Helm,
    operator: Operator, tmp_path: Path,
) -> None:  # fmt: skip
    def fields() -> set[str]:
        schema = client.get(crd)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        return set(schema["properties"]["spec"]["properties"])

    operator.stop()
    crd = path_of("apiextensions.k8s.io/v1", "CustomResourceDefinition", None)
    crd += "/inferenceservices.octavo.dev"
    kubectl("delete", "-f", str(CRDS))
    try:
        said = helm("install", "own", str(older(tmp_path)))
        assert "kubectl get octavo" in said
        cluster.wait_for_crd()
        make(client, namespace, manifest("a", {"device": "cpu"}))
        assert "suspend" not in fields()
        deployment = path_of("apps/v1", "Deployment", namespace, "own-octavo-operator")
        before = client.get(deployment)
        account = f"system:serviceaccount:{namespace}:own-octavo-operator"
        for verb, resource, answer in (
            ("list", "inferenceservices.octavo.dev", "yes"), ("get", "secrets", "no"),
        ):  # fmt: skip
            asked = ["auth", "can-i", verb, resource, f"--as={account}", "-n", "default"]
            assert kubectl(*asked, check=False).stdout.strip() == answer

        helm("upgrade", "own", str(CHART), "--set", "podLabels.a=b", "--set", "replicas=2")
        assert "suspend" in fields()
        after = client.get(deployment)
        assert after["spec"]["replicas"] == 2
        helm("upgrade", "own", str(CHART), "--reset-values")
        again = client.get(deployment)
        assert again["spec"]["template"] == before["spec"]["template"]

        helm("uninstall", "own")
        assert client.find(deployment) is None
        # What people wrote is still there.
        assert client.find(path_of(API, "InferenceService", namespace, "a")) is not None
    finally:
        kubectl("apply", "-f", str(CRDS), "--server-side", "--force-conflicts")
        cluster.wait_for_crd()
        operator.restart()


@pytest.fixture
def way_in(cluster: Cluster, nodes: Callable[..., Node]) -> Iterator[None]:
    """A node that runs the operator's image, and for its pods a way to the API server."""
    port = int(cluster.plane.url.rpartition(":")[2])
    with TcpProxy(port, cluster.network.gateway) as proxy:
        octavo = cluster.images["octavo"]
        # As a kubelet sets them.
        where = {
            "KUBERNETES_SERVICE_HOST": cluster.network.gateway,
            "KUBERNETES_SERVICE_PORT": str(proxy.port),
        }
        environment = {**octavo.environment, **where}
        cluster.images["octavo-operator"] = dataclasses.replace(octavo, environment=environment)
        nodes(cpus=4, backoff_seconds=1.0)
        yield
        del cluster.images["octavo-operator"]


def test_its_own_test(
    cluster: Cluster, client: Client, namespace: str, nodes: Callable[..., Node],
    helm: Helm, operator: Operator, way_in: None,
) -> None:  # fmt: skip
    """As pods, with the rights that the chart gives: the operator serves, `helm test` finds it so,
    and fails once a right is gone.
    """
    operator.stop()
    pod = path_of("v1", "Pod", namespace, "tested-octavo-operator-test")
    try:
        # The /tmp of metrics API pods would hide a checkout that lies below /tmp.
        values = ["--set=crds.install=false", "--set=metricsApi.enabled=false"]
        helm("install", "tested", str(CHART), *values, "--wait", "--timeout=90s")
        said = helm("test", "tested", "--timeout=60s")
        assert "Phase:          Succeeded" in said, said
        assert client.find(pod) is None
        taint = {"key": "nvidia.com/gpu", "effect": "NoSchedule"}  # only for those with GPUs
        nodes(gpus=1, script=steady, taints=[taint])
        make(client, namespace, manifest("a"))
        wait_for_condition(client, namespace, "a", lambda c: c.get("reason") == "Serving")

        binding = path_of("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", None)
        client.delete(f"{binding}/tested-octavo-operator")
        said = helm("test", "tested", "--timeout=60s", fails=True)
        assert "tested-octavo-operator-test failed" in said, said
        wait_for("its end", lambda: client.get(pod)["status"]["phase"] == "Failed")
        assert "cannot list inferenceservices" in pod_logs(cluster, namespace)
    finally:
        helm("uninstall", "tested", "--ignore-not-found", "--wait", "--timeout=60s")
        operator.restart()
