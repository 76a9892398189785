"""Listed, then watched from there, and listed again where the watch cannot go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tests.operator.metrics_api.test_fleet import pod
from tests.operator.services import manifest

from octavo_operator.kube import KubeError, KubeUnreachable
from octavo_operator.metrics_api import watches as module
from octavo_operator.metrics_api.fleet import Fleet
from octavo_operator.metrics_api.watches import Watches


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.01)


class Api:
    """Pods and services, whose watches do what they are told: events, or errors that end them."""

    def __init__(self) -> None:
        self.pods: list[dict[str, Any]] = []
        self.lists = 0
        self.from_versions: list[str] = []
        self.events: asyncio.Queue[Any] = asyncio.Queue()

    async def snapshot(self, _: str, kind: str, *__: Any) -> tuple[list[dict[str, Any]], str]:
        if kind != "Pod":
            listed = manifest()
            del listed["apiVersion"], listed["kind"]  # as in any list
            return [listed], "1"
        self.lists += 1
        return list(self.pods), f"{self.lists}00"

    async def watch(
        self, _: str, kind: str, __: Any, ___: str, version: str
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        if kind != "Pod":
            await asyncio.sleep(3600)
        self.from_versions.append(version)
        while True:
            event = await self.events.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                return
            yield event


def versioned(version: str, **changes: Any) -> dict[str, Any]:
    made = pod(**changes)
    made["metadata"]["resourceVersion"] = version
    return made


async def eventually(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_the_fleet_is_as_the_api_server_has_it() -> None:
    api, fleet = Api(), Fleet()
    either: Any = api
    watches = Watches(either, fleet, ())
    api.pods = [versioned("5", name="a"), versioned("6", name="b")]
    assert not watches.listed
    task = asyncio.ensure_future(watches.run())

    def there() -> set[str]:
        return {each.key[1] for each in fleet.pods()}

    try:
        await eventually(lambda: watches.listed)
        assert there() == {"a", "b"} and ("ns", "tiny") in fleet.services
        api.events.put_nowait(("ADDED", versioned("101", name="c")))
        api.events.put_nowait(("DELETED", versioned("102", name="a")))
        await eventually(lambda: there() == {"b", "c"})
        # Its time is over: on from the last version, a bookmark's.
        api.events.put_nowait(("BOOKMARK", {"metadata": {"resourceVersion": "150"}}))
        api.events.put_nowait(None)
        await eventually(lambda: api.from_versions == ["100", "150"])
        api.events.put_nowait(KubeUnreachable("away"))
        await eventually(lambda: api.from_versions == ["100", "150", "150"])
        assert there() == {"b", "c"} and api.lists == 1
        # Too long ago: all anew, and who went meanwhile is gone.
        api.pods = [versioned("300", name="c")]
        api.events.put_nowait(KubeError(410, "Expired", "too old"))
        await eventually(lambda: there() == {"c"})
        await eventually(lambda: api.from_versions[-1] == "200")
        # A defect ends no watch.
        api.events.put_nowait(("ADDED", {"metadata": {"resourceVersion": "1"}}))
        await eventually(lambda: api.lists == 3)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_place_that_cannot_be_listed_is_not_listed() -> None:
    class Refusing(Api):
        async def snapshot(self, version: str, kind: str, *rest: Any) -> Any:
            if kind == "Pod":
                self.lists += 1
                raise KubeError(403, "Forbidden", "pods is forbidden")
            return await super().snapshot(version, kind, *rest)

    api, fleet = Refusing(), Fleet()
    either: Any = api
    watches = Watches(either, fleet, ())
    task = asyncio.ensure_future(watches.run())
    await eventually(lambda: api.lists > 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not watches.listed and ("ns", "tiny") in fleet.services
