"""The client against a server of its own that is busy, away or wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration
from tests.operator.test_metrics import free_port

from octavo_operator import kube as module
from octavo_operator.kube import ATTEMPTS, Kube, KubeError, crd_name

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "a", "namespace": "ns"},
}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited, which nobody waits for."""
    found: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds >= 0.4:
            found.append(seconds)
        await real(0)

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    return found


def talk(answers: list[web.Response], ask: Callable[[Kube], Awaitable[Any]]) -> tuple[Any, int]:
    """What `ask` gives where the server has these answers, and how many it gave."""
    given = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal given
        given += 1
        return answers[given - 1]

    async def scenario() -> Any:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            async with Kube(Configuration(host=f"http://127.0.0.1:{port}")) as kube:
                return await ask(kube)
        finally:
            await runner.cleanup()

    try:
        return asyncio.run(scenario()), given
    except KubeError as error:
        return error, given


def get(kube: Kube) -> Awaitable[Any]:
    return kube.get("v1", "Pod", "ns", "a")


def refusal(code: int, **headers: str) -> web.Response:
    return web.json_response({"message": "no"}, status=code, headers=headers)


@pytest.mark.parametrize("code", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again(code: int, waits: list[float]) -> None:
    found, given = talk([refusal(code), refusal(code), web.json_response(POD)], get)
    assert (found, given) == (POD, 3)
    assert waits[0] < waits[1]


def test_it_waits_as_long_as_it_is_told_but_not_for_ever(waits: list[float]) -> None:
    busy = [refusal(429, **{"Retry-After": "3"}), refusal(429, **{"Retry-After": "9999"})]
    found, _ = talk([*busy, web.json_response(POD)], get)
    assert found == POD
    assert 3 <= waits[0] <= 4.5
    assert waits[1] <= 15


def test_in_the_end_it_says_so(waits: list[float]) -> None:
    found, given = talk([refusal(503) for _ in range(ATTEMPTS)], get)
    assert (found.code, given) == (503, ATTEMPTS)


@pytest.mark.parametrize("code", [400, 403, 409, 422, 500])
def test_an_answer_that_will_stay_is_not_asked_for_again(code: int, waits: list[float]) -> None:
    found, given = talk([refusal(code)], get)
    assert (found.code, given) == (code, 1)


def test_what_may_have_been_created_is_not_created_twice(waits: list[float]) -> None:
    found, given = talk([refusal(503)], lambda kube: kube.create(POD))
    assert (found.code, given) == (503, 1)
    created, given = talk([refusal(429), web.json_response(POD)], lambda kube: kube.create(POD))
    assert (created, given) == (POD, 2)


ROUTES = ("gateway.networking.k8s.io/v1", "HTTPRoute")


def watched(*events: dict[str, Any], code: int = 200) -> tuple[list[tuple[str, str]], Any]:
    """(type, name) of each event that a watch gave, and the error that ended it."""
    found: list[tuple[str, str]] = []

    async def ask(kube: Kube) -> None:
        async for what, each in kube.watch(*ROUTES, "ns", "octavo.dev/service", "7"):
            if what == "OPEN":
                assert (found, each) == ([], {})
                continue
            found.append((what, each["metadata"]["name"]))

    body = "".join(json.dumps(each) + "\n" for each in events)
    error, _ = talk([web.Response(text=body, status=code)], ask)
    return found, error


def test_a_watch_gives_what_it_is_told_until_it_ends() -> None:
    large = {"metadata": {"name": "a" * 500_000}}
    events = [
        {"type": "ADDED", "object": large},
        {"type": "DELETED", "object": {"metadata": {"name": "b"}}},
    ]
    assert watched(*events) == ([("ADDED", "a" * 500_000), ("DELETED", "b")], None)


def test_a_watch_that_cannot_go_on_says_why() -> None:
    gone = {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}}
    found, error = watched({"type": "ADDED", "object": {"metadata": {"name": "a"}}}, gone)
    assert found == [("ADDED", "a")]
    assert (error.code, error.reason) == (410, "Expired")
    _, error = watched({"message": "no"}, code=403)
    assert error.code == 403


@pytest.mark.parametrize(
    ("answer", "served"),
    [
        (web.json_response({"resources": [{"kind": "HTTPRoute"}]}), True),
        (web.json_response({"resources": [{"kind": "GRPCRoute"}]}), False),
        (web.Response(text="404 page not found", status=404), False),
    ],
    ids=["served", "not this kind", "no such group"],
)
def test_whether_a_kind_is_served(answer: web.Response, served: bool) -> None:
    assert talk([answer], lambda kube: kube.serves(*ROUTES)) == (served, 1)


def test_a_crds_name() -> None:
    assert crd_name(*ROUTES) == "httproutes.gateway.networking.k8s.io"
