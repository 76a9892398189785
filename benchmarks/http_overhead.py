"""What the API process costs: CPU microseconds a request and a streamed token, without a model.

    python benchmarks/http_overhead.py [--repeats N] [--json FILE]

Three processes as in production: a client (benchmarks/rows/client.py), the API process, and an
engine that answers at once (benchmarks/instant_engine.py). The API process's CPU time is read from
the kernel (all its threads, to the nanosecond), so what the client does on the same cores does not
count; the elapsed times do contain it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "server"), str(ROOT / "kernels"), str(ROOT)]

from benchmarks.rows.client import Clients, http_request  # noqa: E402

from octavo_server.api.serve import loop_factory  # noqa: E402

PROMPT = "The capital of France is"


@dataclass(frozen=True, slots=True)
class Case:
    """`step_seconds`: how long the engine takes for each token of all streams; 0: no time.
    `gap_seconds`: between the requests; if any, elapsed is the time of one request.
    """

    name: str
    requests: int
    tokens: int
    stream: bool = False
    step_seconds: float = 0.0
    gap_seconds: float = 0.0
    path: str = "/v1/completions"

    def body(self) -> dict[str, object]:
        asked: dict[str, object] = {"max_tokens": self.tokens, "stream": self.stream}
        if "chat" in self.path:
            asked["messages"] = [{"role": "user", "content": PROMPT}]
        else:
            asked["prompt"] = PROMPT
        return asked | {"temperature": 0, "ignore_eos": True}


CASES = (
    Case("requests one by one", 40, 50, gap_seconds=0.02),
    Case("50 requests at once", 50, 50),
    Case("500 requests at once", 500, 50),
    Case("500 chats at once", 500, 50, path="/v1/chat/completions"),
    Case("100 streams, 10 ms a token", 100, 128, stream=True, step_seconds=0.010),
    Case("250 streams, as fast as they go", 250, 128, stream=True),
)


@dataclass(slots=True)
class Measured:
    """Medians. Microseconds are CPU time of the API process, over what the case counts."""

    case: str
    per: str
    cpu_microseconds: float
    elapsed_milliseconds: float
    a_second: float


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time of the API process")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--serve", type=int, metavar="FD", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_serve(given.serve))
        return
    rows: list[Measured] = []
    with Clients(1) as clients:
        for case in CASES:
            rows.append(measure(clients, case, given.repeats))
            row = rows[-1]
            print(
                f"{row.case:34} {row.cpu_microseconds:8.1f} us/{row.per:8}"
                f" {row.elapsed_milliseconds:8.1f} ms {row.a_second:9.0f} {row.per}s/s",
                flush=True,
            )
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def measure(clients: Clients, case: Case, repeats: int) -> Measured:
    """One case on a server of its own, after a run that warms it up."""
    with _server(case.step_seconds) as (port, pid):
        requests = [http_request(port, case.path, case.body())] * case.requests
        count = case.requests * (case.tokens if case.stream else 1)
        cpu: list[float] = []
        elapsed: list[float] = []
        for _ in range(1 + repeats):
            before = cpu_seconds(pid)
            answers = clients.send(
                port, requests, [i * case.gap_seconds for i in range(case.requests)]
            )
            cpu.append(cpu_seconds(pid) - before)
            if case.gap_seconds:
                elapsed.append(statistics.median(a.ended - a.sent for a in answers))
            else:
                elapsed.append(max(a.ended for a in answers) - min(a.sent for a in answers))
    seconds = statistics.median(elapsed[1:])
    return Measured(
        case=case.name,
        per="token" if case.stream else "request",
        cpu_microseconds=statistics.median(cpu[1:]) / count * 1e6,
        elapsed_milliseconds=seconds * 1e3,
        a_second=(1 if case.gap_seconds else count) / seconds,
    )


def cpu_seconds(pid: int) -> float:
    """Of all threads of a process that live."""
    times = (path.read_text().split()[0] for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(map(int, times)) * 1e-9


@contextmanager
def _server(step_seconds: float) -> Iterator[tuple[int, int]]:
    """Port and process id."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        folders = [str(ROOT / "server"), str(ROOT / "kernels"), str(ROOT)]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(folders),
            "OCTAVO_STEP_SECONDS": str(step_seconds),
        }
        process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdout=subprocess.PIPE,
            env=environment,
        )
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("the server did not start")
            yield listener.getsockname()[1], process.pid
        finally:
            process.terminate()
            process.wait()


async def _serve(descriptor: int) -> None:
    """The API process: everything of `octavo serve` but its loading and its signals."""
    from tests.server.text.tiny_tokenizers import byte_level

    from octavo_server.api.app import create_app
    from octavo_server.api.run import http_server, spare_collections
    from octavo_server.api.service import Service
    from octavo_server.api.settings import ServeSettings
    from octavo_server.config import EngineConfig
    from octavo_server.engine.client import EngineClient
    from octavo_server.engine.early import spawn

    ready = asyncio.Event()
    service = Service(
        ServeSettings(served_model_names=("tiny",)),
        send=lambda message: engine.send(message),
        on_loaded=ready.set,
    )
    engine = EngineClient(
        EngineConfig(model="none"),
        on_message=service.on_message,
        process=spawn("benchmarks.instant_engine"),
    )
    engine.start()
    service.set_tokenizer(byte_level(), None)
    await ready.wait()
    spare_collections()
    listener = socket.socket(fileno=descriptor)
    listener.setblocking(False)
    http = http_server(create_app(service), "warning")
    print("ready", flush=True)
    await http.serve(sockets=[listener])


if __name__ == "__main__":
    main()
