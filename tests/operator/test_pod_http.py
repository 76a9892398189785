"""Questions to pods: an answer, or nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from tests.operator.test_metrics import free_port

from octavo_operator import pod_http as module
from octavo_operator.listening import listening
from octavo_operator.pod_http import MOST_BYTES, PodHttp


def ask(answer: Any) -> dict[str, Any] | None:
    async def story() -> dict[str, Any] | None:
        port = free_port()
        async with listening(port, {"/load": answer}), PodHttp() as http:
            return await http.get("127.0.0.1", port, "/load")

    return asyncio.run(story())


async def fine(_: web.Request) -> web.Response:
    return web.json_response({"a": 1})


def test_an_object() -> None:
    assert ask(fine) == {"a": 1}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, "[1]"),
        (200, "{"),
        (200, "\xff"),
        (200, ""),
        (503, "{}"),
        (404, "{}"),
        (200, '{"a": "' + "x" * MOST_BYTES + '"}'),
        (200, "[" * 50_000),
        (200, '{"a": ' + "9" * 5000 + "}"),
    ],
)
def test_anything_else_is_nothing(status: int, body: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body.encode("latin-1"))

    assert ask(answer) is None


def test_a_redirect_is_not_followed() -> None:
    async def answer(_: web.Request) -> web.Response:
        raise web.HTTPFound("http://127.0.0.1:1/")

    assert ask(answer) is None


def test_nobody_there_and_no_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.2)

    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    async def nobody() -> dict[str, Any] | None:
        async with PodHttp() as http:
            return await http.get("127.0.0.1", free_port(), "/load")

    assert asyncio.run(nobody()) is None
    assert ask(hang) is None


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    assert ask(fine) == {"a": 1}
