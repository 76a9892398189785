"""Manifests that the API server refuses, and those that it lets in and the operator answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.bad_manifests import REFUSED, UNKNOWN
from tests.cluster.cluster import wait_for
from tests.cluster.kube_api import ApiError, Client, path_of
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


@pytest.mark.parametrize(("spec", "path", "words"), REFUSED, ids=str)
def test_refused_by_the_api_server(
    client: Client, namespace: str, spec: dict[str, Any], path: str, words: str
) -> None:
    service = manifest("wrong")
    service["spec"].update(spec)
    # Strict is kubectl's default; Ignore is its --validate=false.
    for validation in ("Strict", "Ignore"):
        where = path_of(API, "InferenceService", namespace)
        with pytest.raises(ApiError) as refusal:
            client.create(f"{where}?fieldValidation={validation}", service)
        assert path in str(refusal.value) and words in str(refusal.value), str(refusal.value)


@pytest.mark.parametrize(("spec", "path"), UNKNOWN, ids=str)
def test_a_misspelt_field_is_named(
    kubectl: Callable[..., Any], namespace: str, spec: dict[str, Any], path: str
) -> None:
    service = manifest("wrong")
    service["spec"].update(spec)
    done = kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(service), check=False)
    assert done.returncode != 0, done.stdout
    assert f'unknown field "{path}"' in done.stderr, done.stderr


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
