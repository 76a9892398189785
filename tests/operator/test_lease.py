"""Two candidates for one lease, on a server that refuses stale writes; time is a number."""

from __future__ import annotations

import asyncio
import copy
import time
from typing import Any

import pytest

from octavo_operator import lease as module
from octavo_operator.kube import KubeError, KubeUnreachable
from octavo_operator.lease import (
    DURATION_SECONDS,
    RENEW_SECONDS,
    LeadershipLost,
    Lease,
    lead,
    until,
)


class Server:
    def __init__(self) -> None:
        self.live: dict[str, Any] | None = None
        self.version = 0
        self.away = False

    async def get(self, *_: str) -> dict[str, Any] | None:
        if self.away:
            raise KubeUnreachable("away")
        return copy.deepcopy(self.live)

    async def create(self, manifest: dict[str, Any]) -> None:
        if self.live is not None:
            raise KubeError(409, "AlreadyExists", "")
        self._store(manifest)

    async def replace(self, manifest: dict[str, Any]) -> None:
        if manifest["metadata"]["resourceVersion"] != str(self.version):
            raise KubeError(409, "Conflict", "")
        self._store(manifest)

    def _store(self, manifest: dict[str, Any]) -> None:
        self.version += 1
        self.live = copy.deepcopy(manifest)
        self.live["metadata"]["resourceVersion"] = str(self.version)


class Scene:
    def __init__(self) -> None:
        self.now = 0.0
        self.server = Server()

    def candidate(self, name: str, ahead_seconds: float = 0.0) -> Lease:
        kube: Any = self.server
        return Lease(kube, "system", "octavo", name, clock=lambda: self.now + ahead_seconds)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    scene, real_sleep = Scene(), asyncio.sleep

    async def sleep(seconds: float) -> None:
        scene.now += seconds
        await real_sleep(0)

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    return scene


def test_only_one_leads_and_the_other_waits_out_the_duration(scene: Scene) -> None:
    async def story() -> None:
        first, second = scene.candidate("a"), scene.candidate("b", ahead_seconds=1e6)
        assert await first.attempt()
        assert not await second.attempt()
        scene.now += DURATION_SECONDS - 0.1
        assert not await second.attempt()
        assert await first.attempt()  # renewed: the second's count begins again
        scene.now += 1
        assert not await second.attempt()
        scene.now += DURATION_SECONDS
        assert await second.attempt()
        assert not await first.attempt()
        assert first.holder == "b"
        assert scene.server.live is not None
        assert scene.server.live["spec"]["leaseTransitions"] == 2

    asyncio.run(story())


def test_of_two_that_write_at_once_one_leads(scene: Scene) -> None:
    async def story() -> None:
        server = scene.server
        first, second = scene.candidate("a"), scene.candidate("b")
        await first.attempt()
        await first.release()
        stale = await server.get()

        async def get_stale(*_: str) -> dict[str, Any] | None:
            return stale

        assert await first.attempt()
        server.get = get_stale  # type: ignore[method-assign]
        assert not await second.attempt()
        assert server.live is not None
        assert server.live["spec"]["holderIdentity"] == "a"

    asyncio.run(story())


def test_a_released_lease_is_free_at_once(scene: Scene) -> None:
    async def story() -> None:
        first, second = scene.candidate("a"), scene.candidate("b")
        assert await first.attempt()
        assert not await second.attempt()
        await second.release()  # not its own: stays
        assert not await second.attempt()
        await first.release()
        assert await second.attempt()

    asyncio.run(story())


def test_a_leader_that_cannot_renew_stops_before_another_can_start(scene: Scene) -> None:
    async def story() -> None:
        first = scene.candidate("a")
        await first.attempt()
        scene.server.away = True
        with pytest.raises(LeadershipLost, match="not renewed"):
            await first.keep()
        assert RENEW_SECONDS <= scene.now < DURATION_SECONDS

    asyncio.run(story())


def test_a_leader_that_was_replaced_stops_at_its_next_renewal(scene: Scene) -> None:
    async def story() -> None:
        first, second = scene.candidate("a"), scene.candidate("b")
        await first.attempt()
        await first.release()
        await second.attempt()
        with pytest.raises(LeadershipLost, match="b leads"):
            await first.keep()

    asyncio.run(story())


class Work:
    """What a leader does, until it is cancelled or told that it is over."""

    def __init__(self) -> None:
        self.began = self.cancelled = False
        self.over = asyncio.Event()

    async def __call__(self) -> None:
        self.began = True
        try:
            await self.over.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def test_work_goes_on_while_it_leads_and_the_lease_is_free_after(scene: Scene) -> None:
    async def story() -> None:
        work, stopped = Work(), asyncio.Event()
        work.over.set()
        await lead(scene.candidate("a"), work, stopped, lambda: None)
        assert work.began
        assert not work.cancelled
        assert await scene.candidate("b").attempt()

    asyncio.run(story())


def test_work_is_cancelled_where_the_lead_is_lost(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        first, work = scene.candidate("a"), Work()

        async def sleep(seconds: float) -> None:
            scene.now += seconds
            await asyncio.wait({asyncio.ensure_future(work.over.wait())}, timeout=0.001)
            if work.began:
                scene.server.away = True

        monkeypatch.setattr(module.asyncio, "sleep", sleep)
        with pytest.raises(LeadershipLost):
            await lead(first, work, asyncio.Event(), lambda: None)
        assert work.cancelled
        assert scene.now < DURATION_SECONDS

    asyncio.run(story())


def test_one_that_stands_by_can_be_stopped(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        stopped, work, seen = asyncio.Event(), Work(), []

        async def sleep(seconds: float) -> None:
            if len(seen) == 3:
                stopped.set()
            await asyncio.wait({asyncio.ensure_future(stopped.wait())}, timeout=0.001)

        monkeypatch.setattr(module.asyncio, "sleep", sleep)
        first = scene.candidate("a")
        await first.attempt()
        await lead(scene.candidate("b"), work, stopped, lambda: seen.append(1))
        assert len(seen) == 3
        assert not work.began
        assert await first.attempt()

    asyncio.run(story())


def test_a_stop_in_the_tick_of_acquiring_is_heard(scene: Scene) -> None:
    async def story() -> None:
        stopped, work = asyncio.Event(), Work()
        stopped.set()
        await lead(scene.candidate("a"), work, stopped, lambda: None)
        assert not work.began
        assert await scene.candidate("b").attempt()

    asyncio.run(asyncio.wait_for(story(), 5))


def test_a_stop_ends_the_work(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        stopped, work = asyncio.Event(), Work()

        async def sleep(_: float) -> None:
            if work.began:
                stopped.set()
            await asyncio.wait({asyncio.ensure_future(stopped.wait())}, timeout=0.001)

        monkeypatch.setattr(module.asyncio, "sleep", sleep)
        await lead(scene.candidate("a"), work, stopped, lambda: None)
        assert work.cancelled
        assert await scene.candidate("b").attempt()

    asyncio.run(asyncio.wait_for(story(), 5))


def test_a_leader_whose_server_hangs_gives_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.5)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.3)

    async def story() -> float:
        server: Any = Server()
        lease = Lease(server, "system", "octavo", "a")
        assert await lease.attempt()
        began = time.monotonic()
        forever = asyncio.Event()

        async def hang(*_: str) -> None:
            await forever.wait()

        server.get = hang
        with pytest.raises(LeadershipLost):
            await lease.keep()
        return time.monotonic() - began

    assert 0.4 < asyncio.run(story()) < 0.7  # one more RETRY_SECONDS would be 0.8


def test_until() -> None:
    async def story() -> None:
        stopped, work = asyncio.Event(), Work()
        work.over.set()
        await until(stopped, work())
        assert not work.cancelled

        async def fails() -> None:
            raise ValueError("x")

        with pytest.raises(ValueError, match="x"):
            await until(stopped, fails())
        stopped.set()
        work = Work()
        await asyncio.wait_for(until(stopped, work()), 5)
        assert not work.over.is_set()

    asyncio.run(story())
