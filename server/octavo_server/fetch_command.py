"""`octavo fetch MODEL`: a Hub model's files into the cache, before the server that needs them.

A pod's first container: it needs no GPU, and tells how far it is (GET /progress).
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn

import click

from octavo_server.api.termination import TellingCommand, write_termination
from octavo_server.config import EngineConfig
from octavo_server.errors import StartupError
from octavo_server.loading.hub import drop_partial_files
from octavo_server.loading.meter import Meter
from octavo_server.loading.source import resolve_source
from octavo_server.log_lines import stamped

TERMINATED = 128 + signal.SIGTERM


@click.command(
    name="fetch",
    cls=TellingCommand,
    help="Fetch MODEL, a Hub id (ORG/NAME), into the cache that `octavo serve` reads. What is "
    "there is not fetched again; a file that was cut off starts anew.",
)
@click.argument("model")
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@click.option("--download-dir", help="Where the Hub's files are kept.")
@click.option(
    "--load-format",
    type=click.Choice(["auto", "safetensors", "gguf", "dummy"]),
    default="auto",
    help="dummy: the small files alone.",
)
@click.option(
    "--progress-port",
    type=click.IntRange(1, 65535),
    help="Answer GET /progress there meanwhile, as JSON: done, total (bytes), bytes_per_second.",
)
def command(model: str, progress_port: int | None, **settings: Any) -> None:
    """Raises `StartupError` after having written the termination message."""
    # As a container's first process it would not hear SIGTERM, and a download's threads end late.
    signal.signal(signal.SIGTERM, end)
    meter = Meter()
    if progress_port is not None:
        serve_progress(progress_port, meter)
    try:
        source = resolve_source(EngineConfig(model=model, **settings), tell, meter)
    except StartupError as error:
        write_termination(error.reason, str(error))
        raise
    tell(f"{source.name}: {source.path}")


def end(*_: object) -> NoReturn:
    drop_partial_files()
    os._exit(TERMINATED)


def tell(text: str) -> None:
    click.echo(stamped(text), err=True)


def serve_progress(port: int, meter: Meter) -> Callable[[], None] | None:
    """Until the process ends, or what is returned is called; None if the port is not to be had,
    which is no reason not to fetch.
    """

    class Handler(_Handler):
        shared = meter

    try:
        server = ThreadingHTTPServer(("", port), Handler)
    except OSError as error:
        tell(f"no progress is served: port {port}: {error.strerror}")
        return None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def close() -> None:
        server.shutdown()
        server.server_close()

    return close


class _Handler(BaseHTTPRequestHandler):
    shared: Meter
    timeout = 5.0  # of a client that says nothing

    def do_GET(self) -> None:
        if self.path != "/progress":
            self.send_error(404)
            return
        found = self.shared.read()
        body = json.dumps(
            {"done": found.done, "total": found.total, "bytes_per_second": round(found.rate)}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """A probe's requests are no news."""
