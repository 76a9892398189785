"""The engine process: `python -m octavo_server.engine.process`, started by `engine.client`.

Its settings come as one JSON line on standard input, which then stays open: end-of-file there means
that the parent is gone, however it died, and ends this process too.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time

import msgspec
import zmq

from octavo_server import log_lines
from octavo_server.config import EngineConfig
from octavo_server.distributed.orders import RankFailed
from octavo_server.engine.core import EngineCore
from octavo_server.engine.messages import (
    Failed,
    FromEngine,
    Heartbeat,
    Progress,
    Shutdown,
    ToEngine,
)
from octavo_server.engine.parent import end_with_parent
from octavo_server.errors import EngineDead, StartupError

HEARTBEAT_SECONDS = 1.0

MESSAGES_A_STEP = 256
"""Taken before each step, so that a flood of requests does not hold up the streams of others."""

logger = logging.getLogger(__name__)


class Settings(msgspec.Struct):
    """First line on standard input. Addresses are ZMQ's: receivers bind, senders connect."""

    config: EngineConfig
    requests_address: str
    outputs_address: str
    parent_pid: int


def main() -> int:
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=Settings)
    end_with_parent(settings.parent_pid)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is the API process's to handle: it drains.
    log_lines.install("engine")
    context = zmq.Context()
    outputs = Sender(context, settings.outputs_address)
    code = _run(context, settings, outputs)
    if settings.config.tensor_parallel_size > 1:
        sys.stderr.flush()
        os._exit(code)  # not through destructors that might wait for other ranks
    return code


def _run(context: zmq.Context[zmq.Socket[bytes]], settings: Settings, outputs: Sender) -> int:
    try:
        return _serve(context, settings, outputs)
    except StartupError as error:
        outputs.send(Failed(error.reason, str(error), error.exit_code))
    except EngineDead as error:
        logger.error("the engine failed: %s", error)
        outputs.send(Failed("EngineFailed", str(error)))
    except MemoryError:
        outputs.send(Failed("OutOfMemory", "the machine ran out of memory"))
    except Exception as error:
        logger.exception("the engine failed")
        outputs.send(Failed("EngineFailed", f"{type(error).__name__}: {error}"))
    finally:
        context.destroy(linger=2000)
    return 1


def _serve(context: zmq.Context[zmq.Socket[bytes]], settings: Settings, outputs: Sender) -> int:
    requests = context.socket(zmq.PULL)
    requests.set_hwm(0)
    requests.bind(settings.requests_address)
    # Imported here: torch takes seconds, and its failure is then reported like any other.
    from octavo_server.engine.build import build_engine

    core = build_engine(
        settings.config,
        lambda text: outputs.send(Progress(text)),
        lambda failure: _end(settings, failure),
    )
    # What start-up made lives as long as the process; without this every full collection walks it.
    gc.collect()
    gc.freeze()
    outputs.send(core.ready)
    threading.Thread(
        target=_beat, args=(core, context, settings.outputs_address), name="heartbeat", daemon=True
    ).start()
    decoder = msgspec.msgpack.Decoder(ToEngine)
    while True:
        if not core.has_work:
            requests.poll()  # idle: sleep until somebody asks
        for _ in range(MESSAGES_A_STEP):
            try:
                message = decoder.decode(requests.recv(zmq.NOBLOCK))
            except zmq.Again:
                break
            if isinstance(message, Shutdown):
                core.close()
                return 0
            core.handle(message)
        report = core.step()
        if report is not None:
            outputs.send(report)


def _end(settings: Settings, failure: RankFailed) -> None:
    """The last word, from the thread that watches the other ranks; the one that serves may wait for
    them for ever.
    """
    context = zmq.Context()
    failed = Failed(failure.reason, failure.message, failure.exit_code)
    Sender(context, settings.outputs_address).send(failed)
    context.destroy(linger=2000)
    os._exit(failure.exit_code)


class Sender:
    """One thread's way to the client; ZMQ sockets must not be shared between threads."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self._socket = context.socket(zmq.PUSH)
        self._socket.set_hwm(0)
        self._socket.connect(address)
        self._encoder = msgspec.msgpack.Encoder()

    def send(self, message: FromEngine) -> None:
        self._socket.send(self._encoder.encode(message))


def _beat(core: EngineCore, context: zmq.Context[zmq.Socket[bytes]], outputs_address: str) -> None:
    sender = Sender(context, outputs_address)
    while True:
        sender.send(Heartbeat(time.monotonic(), core.has_work, core.steps_done, core.step_started))
        time.sleep(HEARTBEAT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
