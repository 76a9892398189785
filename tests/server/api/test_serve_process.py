"""`octavo serve` as a real process with a real engine: its whole life, and how it is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
from tests.server.api.authority import Authority, trusting
from tests.server.tiny_models import make_tiny

ROOT = Path(__file__).parents[3]
START_SECONDS = 60
LONG = {"prompt": "The capital of France is", "max_tokens": 480, "ignore_eos": True}


class Process:
    """A server process on a port of its own."""

    def __init__(self, folder: Path, model: str, *flags: str, port: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.termination = folder / "termination"
        self.errors = folder / "stderr"
        roots = [str(ROOT / name) for name in ("server", "kernels", "operator")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([*roots, *filter(None, sys.path)]),
            "OCTAVO_TERMINATION_LOG": str(self.termination),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "octavo_server.cli", "serve", model, "--device", "cpu"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), *flags]
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(command, env=environment, stderr=errors, cwd=ROOT)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def status(self, path: str) -> int | None:
        try:
            return self.http.get(path).status_code
        except httpx.HTTPError:
            return None

    def wait(self, condition, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.errors.read_text()
            assert self.process.poll() is None, self.errors.read_text()
            time.sleep(0.05)

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:{name}{{"))

    def engine(self) -> psutil.Process:
        found = [
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if "octavo_server.engine.early" in " ".join(child.cmdline())
        ]
        assert len(found) == 1
        return found[0]

    def end(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny("llama2", tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def start(tmp_path, model):
    processes = []

    def begin(*flags, name=model, **options):
        process = Process(tmp_path / str(len(processes)), name, *flags, **options)
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.end()


def test_https_of_the_real_thing(start, tmp_path):
    """From the first moment on: the port answers before the model is loaded."""
    authority = Authority()
    certfile, keyfile = authority.issue(tmp_path, "server")
    process = start("--ssl-certfile", certfile, "--ssl-keyfile", keyfile, "--api-key", "k")
    url = f"https://localhost:{process.port}"
    headers = {"Authorization": "Bearer k"}
    with httpx.Client(base_url=url, verify=trusting(authority), headers=headers) as client:
        deadline = time.monotonic() + 60
        while True:
            try:
                if client.get("/ready").status_code == 200:
                    break
            except httpx.ConnectError:
                pass
            assert time.monotonic() < deadline and process.process.poll() is None
            time.sleep(0.05)
        answer = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3})
        assert answer.status_code == 200
        assert client.post("/v1/completions", headers={"Authorization": ""}).status_code == 401


def stream(process, **body):
    """Status and lines of a stream, read in a thread that starts once the first line came."""
    lines: list[str] = []
    first = threading.Event()

    def read():
        streamed = {**body, "stream": True}
        with process.http.stream("POST", "/v1/completions", json=streamed) as answer:
            for line in answer.iter_lines():
                if line:
                    lines.append(line)
                    first.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert first.wait(30)
    return thread, lines


def test_from_start_to_drain(start):
    process = start("--served-model-name", "tiny", "--shutdown-timeout", "30")
    process.wait(lambda: process.status("/ready") == 503, START_SECONDS)
    assert process.status("/health") == 200
    early = process.http.post("/v1/completions", json={"prompt": "a"})
    assert (early.status_code, early.headers["retry-after"]) == (503, "1")
    load = process.http.get("/load").json()
    assert (load["state"], load["kv_cache_tokens"], load["startup_seconds"]) == ("starting", 0, 0)
    process.wait(lambda: process.status("/ready") == 200, START_SECONDS)
    load = process.http.get("/load").json()
    assert (load["state"], load["server_load"], load["running"]) == ("ready", 0, 0)
    assert load["kv_cache_tokens"] >= 512
    assert 0 < load["startup_seconds"] < START_SECONDS

    # The API process has no torch: its memory is a tokenizer's.
    assert psutil.Process(process.process.pid).memory_info().rss < 300 * 2**20
    answer = process.http.post("/v1/completions", json={"prompt": "The", "max_tokens": 5}).json()
    assert answer["usage"]["completion_tokens"] <= 5
    bad = process.http.post("/v1/completions", json={"prompt": [100_000]})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "prompt")

    # A disconnect gives everything back, streaming or not.
    for streams in (True, False):
        with httpx.Client(base_url=process.http.base_url, timeout=0.3) as client:
            body = {**LONG, "n": 8, "stream": streams}
            try:
                with client.stream("POST", "/v1/completions", json=body) as response:
                    next(response.iter_lines())
            except httpx.ReadTimeout:
                assert not streams
        process.wait(
            lambda: (
                process.metric("num_requests_running") == 0
                and process.metric("kv_cache_usage_perc") == 0
                and process.metric("num_requests_waiting") == 0
            )
        )

    aborted = [line for line in process.http.get("/metrics").text.splitlines() if "abort" in line]
    assert float(aborted[0].split()[-1]) >= 8

    # SIGTERM: what runs is finished, new work is refused, then exit 0.
    thread, lines = stream(process, **LONG)
    load = process.http.get("/load").json()
    assert (load["server_load"], load["running"]) == (1, 1)
    assert 0 < load["kv_cache_usage"] <= 1
    process.process.send_signal(signal.SIGTERM)
    process.wait(lambda: process.status("/ready") == 503)
    thread.join(30)
    assert lines[-1] == "data: [DONE]"
    tokens = [json.loads(line[6:]) for line in lines[:-1]]
    assert tokens[-1]["choices"][0]["finish_reason"] == "length"
    assert len(tokens) == LONG["max_tokens"]
    assert process.process.wait(15) == 0
    assert not process.termination.exists()
    assert "Traceback" not in process.errors.read_text()


def test_either_process_killed(start):
    # Two servers that start at the same time, since starting is what takes long.
    first, second = start(), start()
    for process in (first, second):
        process.wait(lambda p=process: p.status("/ready") == 200, START_SECONDS)

    engine = first.engine()
    thread, lines = stream(first, **LONG)
    engine.suspend()
    answers = []
    waiting = threading.Thread(
        target=lambda: answers.append(first.http.post("/v1/completions", json=LONG))
    )
    waiting.start()
    time.sleep(0.3)
    engine.kill()
    began = time.monotonic()
    thread.join(10)
    waiting.join(10)
    assert time.monotonic() - began < 5
    assert lines[-2] == "event: error"
    assert "SIGKILL" in json.loads(lines[-1][6:])["error"]["message"]
    assert answers[0].status_code == 500
    assert answers[0].json()["error"]["code"] == "engine_dead"
    assert first.process.wait(15) == 1
    said = json.loads(first.termination.read_text())
    assert said["reason"] == "EngineFailed"
    last = first.errors.read_text().strip().splitlines()[-1]
    assert last.startswith("error: ")

    engine = second.engine()
    second.process.kill()
    engine.wait(10)  # raises if it outlives its parent


def test_what_cannot_start_says_so_in_one_line(start, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        taken = start(port=port)
        missing = start(name=str(tmp_path / "no-such-model"))
        assert taken.process.wait(START_SECONDS) == 1
    assert taken.errors.read_text().strip() == (
        f"error: cannot listen on 127.0.0.1 port {port}: Address already in use"
    )
    assert missing.process.wait(START_SECONDS) == 1
    said = json.loads(missing.termination.read_text())
    assert said["reason"] == "ModelNotFound"
    lines = missing.errors.read_text().strip().splitlines()
    assert lines[-1] == f"error: {said['message']}"
    assert "Traceback" not in missing.errors.read_text()


def test_sigterm_while_loading(start):
    process = start()
    process.wait(lambda: process.status("/health") == 200, START_SECONDS)
    process.process.send_signal(signal.SIGTERM)
    assert process.process.wait(20) == 0
