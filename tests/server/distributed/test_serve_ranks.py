"""`octavo serve --tensor-parallel-size 2` as processes: it answers, and whichever of them is killed
under load takes the others along.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tests.server.api.test_serve_process import LONG, START_SECONDS, Process
from tests.server.tiny_models import make_tiny

pytestmark = pytest.mark.xdist_group("ranks")

FLAGS = ("--tensor-parallel-size", "2", "--max-model-len", "512", "--dtype", "float32")
END_SECONDS = 10


class Server(Process):
    """A server of two ranks, and the processes of which it consists."""

    def ready(self) -> None:
        self.wait(lambda: self.status("/ready") == 200, START_SECONDS)
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.parts = {"api": psutil.Process(self.process.pid)}
        for process in below:
            for name, module in (("engine", "engine.early"), ("worker", "distributed.worker")):
                if f"octavo_server.{module}" in " ".join(process.cmdline()):
                    assert name not in self.parts
                    self.parts[name] = process
        assert set(self.parts) == {"api", "engine", "worker"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny("qwen3", tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def server(tmp_path: Path, model: str) -> Iterator[Server]:
    server = Server(tmp_path, model, *FLAGS)
    server.ready()
    yield server
    server.end()


def test_two_ranks_answer_as_one_and_leave_when_asked(
    server: Server, tmp_path: Path, model: str
) -> None:
    asked: list[dict[str, Any]] = [
        {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 12},
        {"prompt": [5, 6, 7, 8] * 6, "temperature": 0.8, "seed": 5, "max_tokens": 12},
        {"prompt": "Tell me", "temperature": 0.8, "top_p": 0.9, "seed": 5, "n": 2, "logprobs": 2},
    ]
    alone = Process(tmp_path / "alone", model, "--max-model-len", "512", "--dtype", "float32")
    alone.wait(lambda: alone.status("/ready") == 200, START_SECONDS)
    for body in asked:
        answers = [
            each.http.post("/v1/completions", json={**body, "ignore_eos": True}).json()["choices"]
            for each in (server, alone)
        ]
        texts = [[choice["text"] for choice in choices] for choices in answers]
        assert texts[0] == texts[1]
    alone.end()
    server.process.terminate()
    assert server.process.wait(END_SECONDS) == 0
    for name, process in server.parts.items():
        if name != "api":
            process.wait(END_SECONDS)
    assert "Traceback" not in server.errors.read_text()


def read(server: Server, lines: list[str]) -> None:
    """A stream's lines, as far as they come."""
    body = {**LONG, "stream": True}
    with (
        suppress(httpx.HTTPError),
        server.http.stream("POST", "/v1/completions", json=body) as answer,
    ):
        lines.extend(filter(None, answer.iter_lines()))  # one by one


@pytest.mark.parametrize("name", ["api", "engine", "worker"])
def test_one_killed_under_load_is_the_end_of_all(name: str, server: Server) -> None:
    shared = set(os.listdir("/dev/shm"))
    lines: list[str] = []
    thread = threading.Thread(target=read, args=(server, lines))
    thread.start()
    server.wait(lambda: len(lines) > 3)
    waiting: list[Any] = []
    others = [
        threading.Thread(
            target=lambda: waiting.append(
                server.http.post("/v1/completions", json={**LONG, "n": 4})
            )
        )
        for _ in range(2 if name != "api" else 0)
    ]
    for other in others:
        other.start()
    time.sleep(0.3)
    began = time.monotonic()
    server.parts[name].kill()
    for each in (thread, *others):
        each.join(END_SECONDS)
    if name != "api":
        assert time.monotonic() - began < 5  # clients know at once
        who = "rank 1 of 2 ended by" if name == "worker" else "the engine process ended by"
        assert lines[-2] == "event: error"
        assert f"{who} signal SIGKILL" in json.loads(lines[-1][6:])["error"]["message"]
        assert [answer.status_code for answer in waiting] == [500, 500]
        assert server.process.wait(END_SECONDS) == 1
        said = json.loads(server.termination.read_text())
        assert said["reason"] == "EngineFailed" and who in said["message"]
        # The engine's own last word may come after it: they are two processes.
        said_last = server.errors.read_text().strip().splitlines()[-2:]
        assert any(line.startswith("error: ") and who in line for line in said_last)
    else:
        server.process.wait(END_SECONDS)
    for process in server.parts.values():
        if process.pid != server.process.pid:
            process.wait(END_SECONDS)  # raises if it outlives the one that was killed
    assert time.monotonic() - began < END_SECONDS
    assert not set(os.listdir("/dev/shm")) - shared
