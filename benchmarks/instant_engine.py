"""An engine process that computes nothing: what `benchmarks/http_overhead.py` puts behind the API.

Started as `python -m benchmarks.instant_engine` with the settings line of
`octavo_server.engine.process`. A request that does not stream is answered at once, in one output; a
stream gets a token a step. `OCTAVO_STEP_SECONDS` (environment) is how long a step lasts.
"""

from __future__ import annotations

import os
import sys
import time

import msgspec
import zmq

from octavo_server.engine.messages import (
    Add,
    EngineStats,
    Outputs,
    Ready,
    Shutdown,
    ToEngine,
    TokenOutput,
)
from octavo_server.engine.process import MESSAGES_A_STEP, Sender, Settings

FIRST_TOKEN_ID = 260
"""Tokens count up from here, 130 different ones: whole words and parts of some, no single bytes."""

_PARENT_CHECK_MILLISECONDS = 500
"""An idle engine asks so often whether its API process lives: the benchmark kills that one."""


def main() -> int:
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=Settings)
    step_seconds = float(os.environ.get("OCTAVO_STEP_SECONDS", "0"))
    context = zmq.Context()
    outputs = Sender(context, settings.outputs_address)
    requests = context.socket(zmq.PULL)
    requests.set_hwm(0)
    requests.bind(settings.requests_address)
    outputs.send(Ready(1024, 400, 16, 10_000, 512, "float32", "cpu"))
    decoder = msgspec.msgpack.Decoder(ToEngine)
    running: dict[str, tuple[Add, int]] = {}
    added = 0
    while True:
        if not running and not requests.poll(_PARENT_CHECK_MILLISECONDS):
            if os.getppid() != settings.parent_pid:
                return 0
            continue
        for _ in range(MESSAGES_A_STEP):
            try:
                message = decoder.decode(requests.recv(zmq.NOBLOCK))
            except zmq.Again:
                break
            if isinstance(message, Shutdown):
                return 0
            if isinstance(message, Add):
                running[message.request_id] = message, 0
                added += 1
            else:
                for request_id in message.request_ids:
                    running.pop(request_id, None)
        time.sleep(step_seconds)
        if answers := _step(running):
            stats = EngineStats(len(running), 0, 0.5, step_tokens=len(answers), added=added)
            added = 0
            outputs.send(Outputs(answers, stats, time.monotonic()))


def _step(running: dict[str, tuple[Add, int]]) -> list[TokenOutput]:
    now = time.monotonic()
    answers: list[TokenOutput] = []
    for request_id, (add, made) in list(running.items()):
        wanted = add.params.max_tokens or 1
        count = 1 if add.stream else wanted
        ids = [FIRST_TOKEN_ID + (made + i) % 130 for i in range(count)]
        output = TokenOutput(request_id, ids)
        if made == 0:
            output.scheduled, output.cached_tokens = now, 0
            output.first_token = None if add.stream else now
        if made + count == wanted:
            output.finish_reason = "length"
            del running[request_id]
        else:
            running[request_id] = add, made + count
        answers.append(output)
    return answers


if __name__ == "__main__":
    sys.exit(main())
