"""A pass that fails says so in the status, and is still tried again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.operator.services import NOW, manifest

from octavo_operator import reconcile as module
from octavo_operator.kube import KubeError
from octavo_operator.reconcile import diff, reconcile


class Cluster:
    """Has one InferenceService, and fails at every other request."""

    def __init__(self, error: Exception, status: dict[str, Any] | None = None) -> None:
        self.error = error
        self.live = {**manifest(), "status": status or {}}

    async def get(self, _version: str, kind: str, *_: str) -> dict[str, Any]:
        if kind != "InferenceService":
            raise self.error
        return self.live

    async def patch_status(self, live: dict[str, Any], change: dict[str, Any]) -> None:
        self.live = {**live, "status": {**live["status"], **change}}

    async def create(self, event: dict[str, Any]) -> None:
        pass

    def attempt(self) -> dict[str, str]:
        """Reasons by condition after a pass that must raise."""
        kube: Any = self
        with pytest.raises(type(self.error)):
            asyncio.run(reconcile(kube, "ns", "tiny", image="i", now=lambda: NOW))
        status: Any = self.live["status"]
        return {each["type"]: each["reason"] for each in status.get("conditions", ())}


def test_a_defect_is_a_condition() -> None:
    assert Cluster(AttributeError("no get")).attempt()["WorkloadReady"] == "InternalError"


def test_a_defect_in_rendering_is_a_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RecursionError("deep")

    def fail(_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(module, "parse", fail)
    assert Cluster(error).attempt()["Ready"] == "InternalError"


@pytest.mark.parametrize(
    ("code", "reason"), [(500, "InternalError"), (403, "Forbidden"), (409, None)]
)
def test_a_new_object_hears_of_the_api_servers_errors(code: int, reason: str | None) -> None:
    assert Cluster(KubeError(code, "x", "y")).attempt().get("Ready") == reason


def test_an_older_one_keeps_its_conditions() -> None:
    told = {"type": "Ready", "status": "True", "reason": "Serving", "message": "m"}
    cluster = Cluster(KubeError(500, "x", "y"), {"conditions": [told]})
    assert cluster.attempt() == {"Ready": "Serving"}


def test_a_patch_takes_away_what_is_gone_inside_too() -> None:
    before = {"a": 1, "b": 2, "rollout": {"reason": "x", "waiting": "y"}, "list": [1]}
    after = {"a": 1, "rollout": {"reason": "z"}, "list": [2], "new": {"c": 3}}
    assert diff(before, after) == {
        "b": None,
        "rollout": {"reason": "z", "waiting": None},
        "list": [2],
        "new": {"c": 3},
    }
    assert diff(after, after) is None
