"""Two replicas that look at one Secret at once agree."""

from __future__ import annotations

import asyncio
import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from octavo_operator.kube import KubeError
from octavo_operator.metrics_api.certificate_store import CertificateStore


class Secrets:
    """One Secret, with the API server's optimistic locking."""

    def __init__(self) -> None:
        self.live: dict[str, Any] | None = None
        self.version = 0
        self.writes = 0
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.code = 0

    async def get(self, version: str, kind: str, namespace: str, name: str) -> Any:
        assert (version, kind, namespace, name) == ("v1", "Secret", "octavo", "own")
        found = copy.deepcopy(self.live)
        await asyncio.sleep(0)
        return found

    async def create(self, manifest: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        self._write(manifest, self.live is None)

    async def replace(self, manifest: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        assert self.live is not None
        same = manifest["metadata"]["resourceVersion"] == self.live["metadata"]["resourceVersion"]
        self._write(manifest, same)

    def _write(self, manifest: dict[str, Any], allowed: bool) -> None:
        if self.code or not allowed:
            raise KubeError(self.code or 409, "", "")
        self.version += 1
        self.writes += 1
        self.live = copy.deepcopy(manifest)
        self.live["metadata"]["resourceVersion"] = str(self.version)

    def store(self) -> CertificateStore:
        either: Any = self
        return CertificateStore(either, "octavo", "own", ("a.svc",), lambda: self.now)


async def test_replicas_that_begin_at_once_agree() -> None:
    secrets = Secrets()
    found = await asyncio.gather(*(secrets.store().look() for _ in range(4)))
    assert len({each.certificate for each in found}) == 1
    assert secrets.writes == 1


async def test_and_when_it_is_renewed() -> None:
    secrets = Secrets()
    before = await secrets.store().look()
    secrets.now += timedelta(days=60)
    found = await asyncio.gather(*(secrets.store().look() for _ in range(4)))
    assert len({each.certificate for each in found} | {before.certificate}) == 2
    assert secrets.writes == 2


async def test_what_others_put_on_it_stays() -> None:
    secrets = Secrets()
    await secrets.store().look()
    assert secrets.live is not None
    secrets.live["metadata"]["labels"]["team"] = "a"
    secrets.now += timedelta(days=60)
    await secrets.store().look()
    assert secrets.live["metadata"]["labels"]["team"] == "a"


async def test_nonsense_in_it_is_replaced() -> None:
    secrets = Secrets()
    first = await secrets.store().look()
    assert secrets.live is not None
    secrets.live["data"]["ca.key"] = "&&&"
    assert (await secrets.store().look()).certificate != first.certificate


async def test_a_right_that_is_missing_is_told() -> None:
    secrets = Secrets()
    secrets.code = 403
    with pytest.raises(KubeError):
        await secrets.store().look()
