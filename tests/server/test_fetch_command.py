"""`octavo fetch` as a process, from a Hub on the loopback."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.loading.hub_server import Hub, running_hub
from tests.server.models.published_configs import LLAMA

BYTES = 25_000_000  # huggingface_hub writes down 10 MiB at a time
HELD = 22_000_000


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "model.safetensors").write_bytes(os.urandom(BYTES))
    with running_hub() as running:
        running.repositories["acme/tiny"] = folder
        yield running
        running.go_on.set()


class Fetch:
    """Started at once; the port is free."""

    def __init__(
        self,
        hub: Hub,
        folder: Path,
        *words: str,
        port: int | None = None,
        largest_file: int | None = None,
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = port or probe.getsockname()[1]
        self.termination = folder / "termination"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OCTAVO_TERMINATION_LOG": str(self.termination),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        command = [sys.executable, "-m", "octavo_server.cli", "fetch", *words]
        self.process = subprocess.Popen(
            [*command, f"--progress-port={self.port}"],
            env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if largest_file is not None:
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (largest_file, largest_file))

    def progress(self) -> dict[str, Any] | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/progress") as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.URLError:
            return None

    def wait_for(self, done: int) -> dict[str, Any]:
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.poll() is None:
            found = self.progress()
            if found is not None and found["done"] >= done:
                return found
            time.sleep(0.05)
        raise AssertionError(f"never {done} bytes; {self.progress()}")

    def end(self, seconds: float = 60) -> tuple[int, str]:
        said = self.process.communicate(timeout=seconds)[1]
        return self.process.returncode, said


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path) -> Iterator[Any]:
    started: list[Fetch] = []

    def start(*words: str, **how: int) -> Fetch:
        started.append(Fetch(hub, tmp_path, *words, **how))
        return started[-1]

    yield start
    hub.go_on.set()
    for each in started:
        each.process.kill()
        each.process.wait()


def test_it_says_how_far_it_is(hub: Hub, fetch: Any) -> None:
    hub.hold_after_bytes = HELD
    first = fetch("acme/tiny")
    found = first.wait_for(1)
    assert found["total"] == BYTES
    assert 0 < found["done"] <= HELD
    assert set(found) == {"done", "total", "bytes_per_second"}
    hub.go_on.set()
    code, said = first.end()
    assert code == 0, said
    assert "acme/tiny: " in said
    # A second pod on the same cache, or a restart, fetches nothing.
    count = len(hub.downloads("model.safetensors"))
    assert fetch("acme/tiny").end()[0] == 0
    assert len(hub.downloads("model.safetensors")) == count


def test_it_ends_at_once_when_told_and_does_it_later(hub: Hub, fetch: Any, tmp_path: Path) -> None:
    hub.hold_after_bytes = HELD
    first = fetch("acme/tiny")
    first.wait_for(1)
    assert list(tmp_path.rglob("*.incomplete"))
    first.process.send_signal(signal.SIGTERM)
    assert first.end(10)[0] == 143
    # Nobody would go on with it: a claim would fill up with the halves of files.
    assert not list(tmp_path.rglob("*.incomplete"))
    hub.hold_after_bytes = None
    hub.go_on.set()
    assert fetch("acme/tiny").end()[0] == 0


def test_a_cache_that_is_full_is_said_to_be(fetch: Any) -> None:
    failed = fetch("acme/tiny", largest_file=12_000_000)
    code, said = failed.end()
    assert code != 0
    assert "acme/tiny cannot be stored in the cache: File too large" in said.splitlines()[-1]
    told = json.loads(failed.termination.read_text())
    assert told["reason"] == "StartupFailed"


def test_other_paths_are_nothing(hub: Hub, fetch: Any) -> None:
    hub.hold_after_bytes = HELD
    first = fetch("acme/tiny")
    first.wait_for(1)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://127.0.0.1:{first.port}/")
    assert caught.value.code == 404


@pytest.mark.parametrize(
    ("words", "reason", "said"),
    [
        (["acme/none"], "ModelNotFound", "the Hub has no model acme/none"),
        (["acme/tiny", "--revision=no"], "ModelNotFound", "no revision no"),
        (["acme/tiny", "--nonsense"], "InvalidSettings", "--nonsense"),
    ],
)
def test_mistakes_are_one_line_and_the_termination_message(
    fetch: Any, words: list[str], reason: str, said: str
) -> None:
    failed = fetch(*words)
    code, text = failed.end()
    assert code != 0
    assert said in text.splitlines()[-1]
    told = json.loads(failed.termination.read_text())
    assert told["reason"] == reason
    assert said in told["message"]


def test_a_port_that_is_taken_is_no_reason_not_to_fetch(hub: Hub, fetch: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        code, said = fetch("acme/tiny", port=taken.getsockname()[1]).end()
    assert code == 0
    assert "no progress is served" in said
