"""Reading config.json from a Hub of our own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from tests.server.models.published_configs import LLAMA

from octavo_operator import hub
from octavo_operator.fit import Unread
from octavo_operator.hub import AGAIN_SECONDS, HubConfigs
from octavo_operator.model_uri import FileModel, HubModel
from octavo_server.model_config import ModelConfig

KEY = ("ns", "a")
ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "good": (200, {}, json.dumps(LLAMA).encode()),
    "gated": (403, {"X-Error-Code": "GatedRepo"}, b""),
    "private": (401, {}, b""),
    "gone": (404, {}, b""),
    "broken": (500, {}, b""),
    "garbage": (200, {}, b"<html>"),
    "list": (200, {}, b"[]"),
    "deep": (200, {}, b"[" * 100_000),
    "strange": (200, {}, json.dumps({**LLAMA, "architectures": ["Other"]}).encode()),
    "huge": (200, {}, b'"' + b"x" * (2 << 20) + b'"'),
}


class Answer(BaseHTTPRequestHandler):
    paths: list[str]

    def do_GET(self) -> None:
        self.paths.append(self.path)
        status, headers, body = ANSWERS[self.path.split("/")[2]]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # In two pieces, as networks bring them.
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        time.sleep(0.05)
        self.wfile.write(body[len(body) // 2 :])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the Hub was asked for."""
    asked: list[str] = []
    handler = type("Asked", (Answer,), {"paths": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield asked
    server.shutdown()
    server.server_close()


def read(name: str, revision: str | None = None) -> ModelConfig | Unread:
    """What `get` gives at last."""

    async def scenario() -> ModelConfig | Unread:
        came = asyncio.Event()
        configs = HubConfigs(lambda key: came.set() if key == KEY else None)
        source = HubModel(f"org/{name}", revision)
        assert configs.get(source, KEY) is None
        await asyncio.wait_for(came.wait(), 20)
        found = configs.get(source, KEY)
        assert found is not None
        return found

    return asyncio.run(scenario())


def test_a_config_at_its_revision(paths: list[str]) -> None:
    found = read("good", "v1")
    assert isinstance(found, ModelConfig)
    assert found.hidden_size == LLAMA["hidden_size"]
    assert paths == ["/org/good/resolve/v1/config.json"]
    read("good")
    assert paths[-1] == "/org/good/resolve/main/config.json"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gated", "GatedModel"),
        ("private", "GatedModel"),
        ("gone", "ModelNotReadable"),
        ("broken", "HubUnreachable"),
        ("garbage", "ModelNotReadable"),
        ("list", "ModelNotReadable"),
        ("deep", "ModelNotReadable"),
        ("strange", "ModelNotReadable"),
        ("huge", "ModelNotReadable"),
    ],
)
def test_what_cannot_be_read_says_why(paths: list[str], name: str, reason: str) -> None:
    found = read(name)
    assert isinstance(found, Unread)
    assert found.reason == reason
    assert found.message
    assert "\n" not in found.message


def test_a_hub_that_is_away_or_slow(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.0)
    found = read("good")
    assert isinstance(found, Unread)
    assert found.reason == "HubUnreachable"


def test_a_failure_is_asked_for_again_later_and_a_config_never(
    paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        now = 0.0
        came = asyncio.Event()
        configs = HubConfigs(lambda _: came.set(), lambda: now)
        gone, good = HubModel("org/gone", None), HubModel("org/good", None)
        for source in (gone, good):
            configs.get(source, KEY)
            came.clear()
            await asyncio.wait_for(came.wait(), 20)
        now = AGAIN_SECONDS - 1
        assert isinstance(configs.get(gone, KEY), Unread)
        assert len(paths) == 2
        now = AGAIN_SECONDS + 1
        came.clear()
        assert isinstance(configs.get(gone, KEY), Unread)  # the last answer, meanwhile
        assert isinstance(configs.get(good, KEY), ModelConfig)
        await asyncio.wait_for(came.wait(), 20)
        assert [each.split("/")[2] for each in paths] == ["gone", "good", "gone"]

    asyncio.run(scenario())


def test_other_models_are_not_asked_for() -> None:
    found = HubConfigs(print).get(FileModel("/m"), KEY)
    assert isinstance(found, Unread)
    assert found.reason == "ModelNotReadable"
