"""Pods made of small Python scripts, and a runner that remembers what it was told."""

from __future__ import annotations

import asyncio
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo_operator.local.pod import PodRunner
from octavo_operator.local.resolver import NoObjects, Resolver
from octavo_operator.local.sandbox import LocalSandbox, Sandbox

# The answer of /ready is the content of the file READY ("200" or "503"); everything else gives 200.
SERVER = """
    import http.server, os, signal, sys
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            code = 200
            if self.path == "/ready" and "READY" in os.environ:
                code = int(open(os.environ["READY"]).read())
            if self.path == "/live" and "LIVE" in os.environ:
                code = int(open(os.environ["LIVE"]).read())
            if self.path == "/stop":
                print("hook", flush=True)
            self.send_response(code)
            self.end_headers()
        def log_message(self, *args): pass
    port = int(sys.argv[sys.argv.index("--port") + 1])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    def stop(*args):
        print("sigterm", flush=True)
        os._exit(0)
    signal.signal(signal.SIGTERM, stop)
    print("serving", flush=True)
    server.serve_forever()
"""


def python(script: str, *args: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-u", "-c", textwrap.dedent(script), *args]


def container(command: list[str], name: str = "main", **fields: Any) -> dict[str, Any]:
    return {"name": name, "image": "test", "command": command, **fields}


def make_pod(*containers: dict[str, Any], name: str = "pod", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"containers": list(containers), **spec},
    }


class Run:
    """A pod that runs; leave the `async with` and it is gone."""

    def __init__(
        self,
        pod: dict[str, Any],
        folder: Path,
        *,
        sandbox: Sandbox | None = None,
        resolver: Resolver | None = None,
        backoff_seconds: float = 0.2,
        scratch_folder: Path | None = None,
    ) -> None:
        self.pod = pod
        self.statuses: list[dict[str, Any]] = []
        self.events: list[tuple[str, str, str]] = []
        self.log_folder = folder / "logs"
        self.sandbox = sandbox or LocalSandbox()
        self.runner = PodRunner(
            pod,
            self.sandbox,
            resolve=resolver or NoObjects(),
            on_status=self.statuses.append,
            on_event=lambda *event: self.events.append(event),
            log_folder=self.log_folder,
            backoff_seconds=backoff_seconds,
            retry_seconds=0.1,
            scratch_folder=scratch_folder,
        )

    async def __aenter__(self) -> Run:
        self.task = asyncio.create_task(self.runner.run())
        await self.until(lambda: self.statuses)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runner.stop(0)
        await self.task

    @property
    def status(self) -> dict[str, Any]:
        return self.runner.status

    @property
    def main(self) -> dict[str, Any]:
        return self.status["containerStatuses"][0]

    def condition(self, kind: str) -> str:
        return {c["type"]: c["status"] for c in self.status.get("conditions", ())}.get(kind, "")

    def log(self, name: str = "main", run: int = 0) -> str:
        path = self.log_folder / name / f"{run}.log"
        return path.read_text() if path.exists() else ""

    def reasons(self) -> list[str]:
        return [reason for _, reason, _ in self.events]

    async def until(self, what: Callable[[], object], seconds: float = 8) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                raise AssertionError(f"not in {seconds} s: {self.status} {self.events}")
            await asyncio.sleep(0.02)

    async def ended(self, seconds: float = 8) -> None:
        await asyncio.wait_for(asyncio.shield(self.task), seconds)
