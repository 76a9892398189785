"""Whose object it is, and where requests go: the pure parts of talking to the API server."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.services import service

from octavo_operator.apply import find_conflict, owner_reference
from octavo_operator.kube import _bearer, path_of
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
