"""APIServices of ours that lead nowhere are withdrawn, others' never."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.kube import KubeError
from octavo_operator.metrics_api.registration import Place, render_api_service
from octavo_operator.registrations import NAMES, PATIENCE_SECONDS, Registrations


def registered(version: str, available: str, uid: str = "u") -> dict[str, Any]:
    """As the metrics API makes it."""
    made = render_api_service(version, Place("octavo-system", "octavo-metrics-api"), b"CA")
    made["metadata"]["uid"] = f"{uid}-{version}"
    made["status"] = {"conditions": [{"type": "Available", "status": available}]}
    return made


class Cluster:
    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}
        self.now = 0.0
        self.code = 0

    def has(self, *found: dict[str, Any]) -> None:
        self.found = {each["metadata"]["name"]: each for each in found}

    async def get(self, _version: str, _kind: str, namespace: None, name: str) -> Any:
        assert namespace is None
        if self.code:
            raise KubeError(self.code, "", "")
        return self.found.get(name)

    async def delete(self, live: dict[str, Any]) -> None:
        assert live["kind"] == "APIService"
        del self.found[live["metadata"]["name"]]


async def look(registrations: Registrations, cluster: Cluster, now: float) -> list[str]:
    cluster.now = now
    await registrations.look()
    return sorted(cluster.found)


def both() -> tuple[Registrations, Cluster]:
    cluster = Cluster()
    kube: Any = cluster
    return Registrations(kube, lambda: cluster.now), cluster


async def test_a_dead_one_goes_after_a_minute() -> None:
    registrations, cluster = both()
    cluster.has(registered("v1beta1", "False"), registered("v1beta2", "False"))
    assert await look(registrations, cluster, 5.0) == sorted(NAMES)
    assert await look(registrations, cluster, 5.0 + PATIENCE_SECONDS - 1) == sorted(NAMES)
    assert await look(registrations, cluster, 5.0 + PATIENCE_SECONDS) == []


async def test_one_that_was_back_meanwhile_begins_anew() -> None:
    registrations, cluster = both()
    for at, available in ((0.0, "False"), (30.0, "True"), (50.0, "False"), (100.0, "False")):
        cluster.has(registered("v1beta2", available))
        assert await look(registrations, cluster, at) == [NAMES[1]]
    # So does one that was made again.
    cluster.has(registered("v1beta2", "False", "new"))
    assert await look(registrations, cluster, 120.0) == [NAMES[1]]
    assert await look(registrations, cluster, 120.0 + PATIENCE_SECONDS) == []


async def test_others_stay_however_dead() -> None:
    registrations, cluster = both()
    theirs = registered("v1beta1", "False")
    theirs["metadata"]["labels"] = {}
    cluster.has(theirs)
    for at in (0.0, 100.0, 200.0):
        assert await look(registrations, cluster, at) == [NAMES[0]]


async def test_without_the_right_nothing_is_done() -> None:
    registrations, cluster = both()
    cluster.code = 403
    with pytest.raises(KubeError):
        await registrations.look()
