"""Watches that begin with the first route and outlive what a cluster does to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from octavo_operator import route_watch
from octavo_operator.kube import KubeError, KubeUnreachable
from octavo_operator.route_watch import RouteWatch

Step = tuple[str, str] | Exception
END: Step = ("END", "")


def made(kind: str, name: str = "a") -> dict[str, Any]:
    metadata = {"namespace": "x", "name": name, "resourceVersion": f"v{name}"}
    return {"kind": kind, "metadata": metadata}


class Server:
    """Its watches tell these steps, each until END or an error; then they tell no more."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.begun: list[tuple[str, str | None, str]] = []

    async def watch(
        self, _: str, kind: str, namespace: str | None, label: str, version: str
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        assert label == "octavo.dev/service"
        self.begun.append((kind, namespace, version))
        if not (self.steps and isinstance(self.steps[0], Exception)):
            yield "OPEN", {}
        while self.steps:
            step = self.steps.pop(0)
            if isinstance(step, Exception):
                raise step
            if step == END:
                return
            yield step[0], made("HTTPRoute", step[1])
        await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_watch, "AGAIN_SECONDS", 0.0)


def run(server: Server, *starts: str, namespaces: tuple[str, ...] = ()) -> list[str]:
    """The names that were heard of, once nothing more happens."""
    heard: list[str] = []

    async def scenario() -> None:
        kube: Any = server
        watch = RouteWatch(kube, namespaces, lambda each: heard.append(each["metadata"]["name"]))
        assert not watch.tasks
        for kind in starts:
            watch.start(made(kind, "new"))
            for _ in range(50):
                await asyncio.sleep(0)
        for task in watch.tasks:
            task.cancel()
        await asyncio.gather(*watch.tasks, return_exceptions=True)

    asyncio.run(scenario())
    return heard


def test_changes_are_heard_once_and_one_watch_is_enough() -> None:
    server = Server(("ADDED", "a"), ("BOOKMARK", "b"), ("DELETED", "c"))
    assert run(server, "HTTPRoute", "HTTPRoute") == ["new", "a", "c"]
    assert server.begun == [("HTTPRoute", None, "")]


def test_each_namespace_and_kind_has_its_own() -> None:
    server = Server()
    run(server, "HTTPRoute", "InferencePool", namespaces=("x", "y"))
    assert {each[:2] for each in server.begun} == {
        (kind, namespace) for kind in ("HTTPRoute", "InferencePool") for namespace in ("x", "y")
    }


def test_one_that_ended_goes_on_where_it_was() -> None:
    server = Server(("ADDED", "a"), END, ("ADDED", "b"), KubeUnreachable("away"), ("ADDED", "c"))
    assert run(server, "HTTPRoute") == ["new", "a", "b", "c"]
    assert [each[2] for each in server.begun] == ["", "va", "vb"]


def test_what_is_too_long_ago_is_told_anew() -> None:
    server = Server(("ADDED", "a"), KubeError(410, "Expired", "too old"), ("ADDED", "a"))
    assert run(server, "HTTPRoute") == ["new", "a", "a", "a"]
    assert [each[2] for each in server.begun] == ["", ""]


@pytest.mark.parametrize("code", [403, 404])
def test_one_that_may_not_be_ends_and_begins_with_the_next_route(code: int) -> None:
    server = Server(KubeError(code, "", "no"), ("ADDED", "a"))
    assert run(server, "HTTPRoute") == []
    assert len(server.begun) == 1
    server.steps.insert(0, KubeError(code, "", "no"))
    assert run(server, "HTTPRoute", "HTTPRoute") == ["new", "a"]


def test_a_route_made_while_one_ends_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other pass may come for minutes."""
    monkeypatch.setattr(route_watch, "AGAIN_SECONDS", 0.05)
    server = Server(KubeError(404, "", "no"), ("ADDED", "a"))
    heard = asyncio.Event()

    async def scenario() -> None:
        kube: Any = server
        watch = RouteWatch(kube, (), lambda _: heard.set())
        watch.start(made("HTTPRoute"))
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(server.begun) == 1
        watch.start(made("HTTPRoute"))
        await asyncio.wait_for(heard.wait(), 5)
        for task in watch.tasks:
            task.cancel()

    asyncio.run(scenario())


def test_a_defect_does_not_end_it() -> None:
    server = Server(ValueError("no JSON"), ("ADDED", "a"))
    assert run(server, "HTTPRoute") == ["new", "a"]


def test_one_that_went_while_none_watched_is_heard_of() -> None:
    """A watch that begins anew tells what is there."""
    server = Server(
        ("ADDED", "a"), ("ADDED", "b"), ("DELETED", "b"), KubeError(410, "", "old"), ("ADDED", "c")
    )
    assert run(server, "HTTPRoute") == ["new", "a", "b", "b", "a", "c"]


def test_one_that_was_made_and_went_before_the_watch_began() -> None:
    server = Server(KubeUnreachable("away"), ("BOOKMARK", "9"))
    assert run(server, "HTTPRoute") == ["new"]


def test_one_of_another_namespace_is_not_this_watchs() -> None:
    server = Server()
    assert run(server, "HTTPRoute", namespaces=("other", "x")) == ["new"]
