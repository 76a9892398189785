"""Servers under test as processes of their own: start, wait until ready, stop by process id."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOTS = [str(ROOT / folder) for folder in ("server", "kernels", "operator")]


class ServerFailed(Exception):
    """The server ended, or was not ready in time; the text holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    url: str  # "http://127.0.0.1:PORT"
    pid: int
    start_seconds: float  # from the process's start to its first ready answer


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(
    name: str,
    argv: Sequence[str],
    *,
    port: int,
    ready_path: str,
    log: Path,
    env: Mapping[str, str] | None = None,
    ready_timeout_seconds: float = 300,
    stop_timeout_seconds: float = 30,
) -> Iterator[Server]:
    """Runs `argv` while the block runs. Its output goes to `log`; raises ServerFailed."""
    url = f"http://127.0.0.1:{port}"
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([*SOURCE_ROOTS, *filter(None, [os.environ.get("PYTHONPATH")])])
    began = time.monotonic()
    with log.open("wb") as sink:
        process = subprocess.Popen(
            argv,
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(env or {})},
        )
    try:
        _wait_ready(name, process, url + ready_path, log, began + ready_timeout_seconds)
        yield Server(name, url, process.pid, time.monotonic() - began)
    finally:
        process.terminate()
        try:
            process.wait(stop_timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            print(f"{name}: did not stop within {stop_timeout_seconds} s", file=sys.stderr)


def _wait_ready(
    name: str, process: subprocess.Popen[bytes], url: str, log: Path, deadline: float
) -> None:
    while True:
        if process.poll() is not None:
            raise ServerFailed(f"{name} ended with {process.returncode}:\n{_tail(log)}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        if time.monotonic() > deadline:
            raise ServerFailed(f"{name} is not ready in time:\n{_tail(log)}")
        time.sleep(0.1)


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
