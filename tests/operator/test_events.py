"""Events are said once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo_operator import events as module
from octavo_operator.events import AGAIN_SECONDS, post_event
from octavo_operator.transitions import Event


class Server:
    def __init__(self) -> None:
        self.messages: list[str] = []

    async def create(self, event: dict[str, Any]) -> None:
        self.messages.append(event["message"])


def post(server: Server, message: str, uid: str, reason: str = "R") -> None:
    kube: Any = server
    regarding = {"metadata": {"name": "a", "namespace": "ns", "uid": uid}}
    asyncio.run(post_event(kube, regarding, Event("Normal", reason, message), "now"))


def test_the_same_words_once_in_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_said", {})
    monkeypatch.setattr(module, "_latest", {})
    server, now = Server(), 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    monkeypatch.setattr(module._is_new, "__defaults__", (lambda: now,))
    for message, uid in (("x", "1"), ("x", "1"), ("y", "1"), ("x", "2"), ("x", "1")):
        post(server, message, uid)
    assert server.messages == ["x", "y", "x"]
    now = AGAIN_SECONDS + 1
    post(server, "x", "1")
    post(server, "x", "1")
    assert server.messages == ["x", "y", "x", "x"]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_said", {})
    monkeypatch.setattr(module, "_MOST", 3)
    server = Server()
    for uid in "abcd":
        post(server, "x", uid)
    assert len(module._said) == 3


def test_what_comes_back_is_news_but_not_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_said", {})
    monkeypatch.setattr(module, "_latest", {})
    server, now = Server(), 0.0
    monkeypatch.setattr(module._is_new, "__defaults__", (lambda: now,))
    for seconds in range(0, 70, 10):
        now = float(seconds)
        post(server, "rolls", "1")
        post(server, "serves", "1")
    assert server.messages == ["rolls", "serves"] * 2
    now += 300
    post(server, "serves", "1")  # nothing came between
    assert server.messages == ["rolls", "serves"] * 2
