"""Manifests that the API server refuses, and those that it lets in and the operator answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import wait_for
from tests.cluster.kube_api import Client, path_of
from tests.cluster.test_e2e import API, condition, make, manifest

pytestmark = pytest.mark.usefixtures("operator")


@pytest.mark.parametrize(
    "overlay",
    [
        {"containers": [{"name": "octavo", "env": ["A=b", {"name": "B", "value": "c"}]}]},
        {"volumes": ["cache", {"name": "x", "emptyDir": {}}]},
    ],
    ids=["env", "volumes"],
)
def test_a_malformed_pod_template_is_a_condition(
    client: Client, namespace: str, overlay: dict[str, Any]
) -> None:
    make(client, namespace, manifest("a", {"device": "cpu"}, podTemplate={"spec": overlay}))
    path = path_of(API, "InferenceService", namespace, "a")

    def ready() -> dict[str, Any]:
        return condition(client.get(path), "Ready")

    found = wait_for("a condition", ready, 8, lambda: client.get(path).get("status"))
    assert found["status"] == "False" and found["reason"] in ("InvalidPodTemplate", "InvalidSpec")


def gpus(limit: object) -> dict[str, Any]:
    return {"limits": {"nvidia.com/gpu": limit}}


@pytest.mark.parametrize(
    ("spec", "path", "words"),
    [
        ({"model": {"uri": "oci://"}}, "spec.model.uri", "oci://REGISTRY"),
        ({"model": {"uri": "hf://a/b", "names": ["a,b"]}}, "spec.model.names", "should match"),
        ({"resources": {"limits": {"cpu": -1}}}, "spec.resources.limits", "not be negative"),
        (
            {"resources": {"requests": {"nvidia.com/gpu": 2}}},
            "spec.resources.requests",
            "in limits",
        ),
        ({"resources": gpus("500m")}, "spec.resources.limits", "GPUs come whole"),
        ({"resources": gpus(0), "engine": {"device": "cuda"}}, "spec.resources", "is cuda"),
        (
            {"resources": gpus(1), "engine": {"tensorParallelSize": 2}},
            "spec.resources",
            "less than engine.tensorParallelSize",
        ),
        (
            {"cache": {"persistentVolumeClaim": "weights", "size": "1Gi"}},
            "spec.cache.size",
            "not both",
        ),
        ({"cache": {"size": -1}}, "spec.cache.size", "not be negative"),
        (
            {
                "apiKeySecretRef": {"name": "clients"},
                "engine": {"env": [{"name": "OCTAVO_API_KEY", "value": "x"}]},
            },
            "spec.apiKeySecretRef",
            "given twice",
        ),
        ({"drain": {"seconds": 7201}}, "spec.drain.seconds", "7200"),
        ({"service": {"type": "ExternalName"}}, "spec.service.type", "ClusterIP"),
        ({"engine": {"extraArgs": ["--api-key=x"]}}, "spec.engine.extraArgs", "apiKeySecretRef"),
    ],
    ids=str,
)
def test_refused_by_the_api_server(
    kubectl: Callable[..., Any], namespace: str, spec: dict[str, Any], path: str, words: str
) -> None:
    service = manifest("wrong")
    service["spec"].update(spec)
    done = kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(service), check=False)
    assert done.returncode != 0, done.stdout
    assert path in done.stderr and words in done.stderr, done.stderr


@pytest.mark.parametrize(
    "spec",
    [
        {"resources": {**gpus(2), "requests": {"nvidia.com/gpu": "2"}}},
        {"resources": gpus("0")},
        {"resources": gpus(0), "engine": {"device": "cpu"}},
        {"cache": {"size": "10Gi"}, "drain": {"seconds": 0}, "suspend": True},
        {"resources": {"limits": {"nvidia.com/mig-1g.10gb": 1, "cpu": "500m"}}},
    ],
    ids=str,
)
def test_taken_by_the_api_server(
    kubectl: Callable[..., Any], namespace: str, spec: dict[str, Any]
) -> None:
    service = manifest("right")
    service["spec"].update(spec)
    arguments = ["apply", "-n", namespace, "--dry-run=server", "-f", "-"]
    assert kubectl(*arguments, stdin=json.dumps(service)).returncode == 0
