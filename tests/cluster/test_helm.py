"""The chart on a real control plane: installed, upgraded, uninstalled, by Helm itself."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.test_chart import CHART, helm_program
from tests.cluster.cluster import Cluster
from tests.cluster.kube_api import Client, path_of
from tests.cluster.operator_process import CRDS, Operator
from tests.cluster.test_e2e import API, make, manifest

Helm = Callable[..., str]


@pytest.fixture
def helm(cluster: Cluster, namespace: str) -> Helm:
    program = helm_program()
    if program is None:
        pytest.skip("no helm (`make helm`)")

    def run(verb: str, *arguments: str) -> str:
        done = subprocess.run(
            [program, verb, *arguments, "--namespace", namespace],
            env={"KUBECONFIG": str(cluster.kubeconfig), "PATH": "/usr/bin:/bin", "HOME": "/tmp"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


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
