"""Whose object it is, and where requests go: the pure parts of talking to the API server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.operator.services import service

from octavo_operator.apply import apply, find_conflict, owner_reference
from octavo_operator.kube import KubeError, _bearer, path_of
from octavo_operator.reconcile import diff


def live(owner: dict[str, Any] | None = None, **labels: str) -> dict[str, Any]:
    owners = [] if owner is None else [{"controller": True, **owner}]
    metadata = {"name": "tiny", "labels": labels, "ownerReferences": owners}
    return {"kind": "Deployment", "metadata": metadata}


@pytest.mark.parametrize(
    ("existing", "words"),
    [
        (live({"kind": "InferenceService", "name": "tiny", "uid": "u1"}), None),
        (live(**{"octavo.dev/service": "tiny"}), None),
        (live({"kind": "Rollout", "name": "r", "uid": "x"}), "belongs to Rollout r"),
        (
            live({"kind": "InferenceService", "name": "tiny", "uid": "u0"}),
            "deleted InferenceService",
        ),
        (live(app="mine"), "Octavo did not make"),
        (live(**{"octavo.dev/service": "other"}), "Octavo did not make"),
    ],
)
def test_conflicts(existing: dict[str, Any], words: str | None) -> None:
    conflict = find_conflict(service(), existing)
    assert conflict is None if words is None else conflict is not None and words in conflict


def test_owner_reference() -> None:
    reference = owner_reference(service())
    assert (reference["uid"], reference["controller"]) == ("u1", True)
    assert reference["blockOwnerDeletion"] is False


def test_paths() -> None:
    assert path_of("v1", "Pod", None) == "/api/v1/pods"
    assert path_of("apps/v1", "Deployment", "n", "d") == "/apis/apps/v1/namespaces/n/deployments/d"
    assert path_of("octavo.dev/v1alpha1", "InferenceService", "n", "s", "status") == (
        "/apis/octavo.dev/v1alpha1/namespaces/n/inferenceservices/s/status"
    )


@pytest.mark.parametrize("token", ["abc", "Bearer abc", "bearer abc\n"])
def test_bearer(token: str) -> None:
    assert _bearer(token) == "Bearer abc"


def test_status_is_written_only_when_different() -> None:
    assert diff({"a": 1, "b": [1]}, {"a": 1, "b": [1]}) is None
    assert diff({"a": 1, "b": 2}, {"a": 3}) == {"a": 3, "b": None}


class Busy:
    """A Deployment that others write, so that applies with an older version meet 409."""

    def __init__(self, *changes: dict[str, Any]) -> None:
        self.live = deployment()
        self.changes = list(changes)
        self.applied: dict[str, Any] | None = None

    async def get(self, *_: str) -> dict[str, Any]:
        return self.live

    async def apply(self, manifest: dict[str, Any]) -> dict[str, Any]:
        if self.changes:
            version = str(int(self.live["metadata"]["resourceVersion"]) + 1)
            changed = {**self.changes.pop(0), "resourceVersion": version}
            self.live = {**self.live, "metadata": {**self.live["metadata"], **changed}}
        asked = manifest["metadata"].get("resourceVersion")
        if asked not in (None, self.live["metadata"]["resourceVersion"]):
            raise KubeError(409, "Conflict", "")
        self.applied = manifest
        return manifest

    def attempt(self) -> None:
        kube: Any = self
        asyncio.run(apply(kube, service(), deployment(), deployment()))


def deployment() -> dict[str, Any]:
    metadata = {"name": "tiny", "namespace": "ns", "uid": "d", "generation": 4}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**metadata, "resourceVersion": "7"},
    }


def test_a_status_that_changes_meanwhile_is_no_matter() -> None:
    controllers = {"annotations": {"deployment.kubernetes.io/revision": "2"}}
    busy = Busy({}, controllers, {})
    busy.attempt()
    assert busy.applied is not None


@pytest.mark.parametrize("change", [{"annotations": {"octavo.dev/revision": "x"}}, {"uid": "e"}])
def test_a_deployment_that_another_operator_changed_is_read_anew(change: dict[str, Any]) -> None:
    busy = Busy(change)
    with pytest.raises(KubeError):
        busy.attempt()
    assert busy.applied is None


def test_writers_without_end_do_not_starve_it() -> None:
    busy = Busy(*[{"generation": 5 + index} for index in range(9)])
    busy.attempt()
    assert busy.applied is not None
