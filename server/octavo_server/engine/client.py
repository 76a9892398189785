"""The API process's end of the engine: starts it, talks to it, notices its death."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import zmq

from octavo_server.config import EngineConfig
from octavo_server.engine.early import spawn
from octavo_server.engine.ending import how_it_ended
from octavo_server.engine.messages import Failed, FromEngine, Shutdown, ToEngine
from octavo_server.engine.process import Settings

_DRAIN_SECONDS = 0.2
"""After the process ended: how long its last words, already sent, may take to be read."""

_MESSAGES_A_SEND = 8
"""Each send wakes ZMQ's thread, which takes 20 to 80 us under load. More would let the engine wait
for requests that are still being read.
"""

_MESSAGES_A_TURN = 8
"""Taken before others have theirs: steps of 512 tokens, 2 ms of work each, that piled up."""


class EngineClient:
    """One engine process. `start` and all callbacks belong to the running event loop.

    `on_message` gets every message in order: `Progress`es, then `Ready` or `Failed`, then the rest.
    After `Failed` nothing follows. A process that dies without a word is reported as
    `Failed("EngineFailed", ...)`. `process` is an `early.spawn` that ran ahead, else one is made.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        on_message: Callable[[FromEngine], None],
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self._config = config
        self._spawned = process
        self._on_message = on_message
        self._folder = Path(tempfile.mkdtemp(prefix="octavo-"))
        self._context = zmq.Context()
        # NOTE: the connecting end of a pipe queues from the first message on, the binding end only
        # once it has a peer. Senders therefore connect, receivers bind, and no send ever blocks.
        self._requests = self._context.socket(zmq.PUSH)
        self._requests.set_hwm(0)
        self._requests.connect(self._address("requests"))
        self._outputs = self._context.socket(zmq.PULL)
        self._outputs.set_hwm(0)
        self._outputs.bind(self._address("outputs"))
        self._outbox: list[bytes] = []
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
        self._process: subprocess.Popen[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._failed = False
        self._stopping = False

    @property
    def alive(self) -> bool:
        """Whether the process runs and did not report a failure."""
        return self._process is not None and not self._failed and not self._ended.is_set()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: minus the signal that ended it."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Tell the process what to load; what it has to say arrives through `on_message`."""
        settings = Settings(
            self._config, self._address("requests"), self._address("outputs"), os.getpid()
        )
        self._process = self._spawned or spawn()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it died already, which `_wait` reports
            self._process.stdin.write(msgspec.json.encode(settings) + b"\n")
            self._process.stdin.flush()
        self._loop = loop = asyncio.get_running_loop()
        loop.add_reader(self._outputs.fileno(), self._read)
        threading.Thread(
            target=self._wait, args=(self._process, loop), name="engine-wait", daemon=True
        ).start()

    def send(self, message: ToEngine) -> None:
        """Queue a message; never blocks. Lost if the engine is dead, which `on_message` reports."""
        self._outbox.append(self._encoder.encode(message))
        if self._loop is None or len(self._outbox) == _MESSAGES_A_SEND:
            self._flush()
        elif len(self._outbox) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """The parts of one message of ZMQ's leave together, and are received one by one."""
        outbox, self._outbox = self._outbox, []
        if outbox and not self._requests.closed:
            self._requests.send_multipart(outbox, flags=zmq.NOBLOCK)

    async def stop(self, timeout_seconds: float = 5.0) -> None:
        """Ask it to leave, wait, then kill. What still ran there is dropped. Idempotent."""
        self._stopping = True
        if self._process is not None and not self._ended.is_set():
            self.send(Shutdown())
            self._flush()
            try:
                await asyncio.wait_for(self._ended.wait(), timeout_seconds)
            except TimeoutError:
                self._process.kill()
                await self._ended.wait()
        if self._loop is not None and not self._outputs.closed:
            self._loop.remove_reader(self._outputs.fileno())
        self._outputs.close(linger=0)
        self._context.destroy(linger=0)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _address(self, name: str) -> str:
        return f"ipc://{self._folder}/{name}"

    def _read(self) -> None:
        """Deliver what came. zmq.asyncio's way to the same took 100 us a message.

        NOTE: the descriptor tells of changes only and stays silent until everything was taken, so
        this must come back by itself unless it found nothing more, whatever `on_message` raises.
        """
        more = True
        try:
            for _ in range(_MESSAGES_A_TURN):
                try:
                    frame = self._outputs.recv(zmq.NOBLOCK)
                except zmq.ZMQError as error:
                    more = False
                    if error.errno == zmq.EAGAIN or self._outputs.closed:
                        return
                    raise
                self._deliver(self._decoder.decode(frame))
        finally:
            if more and self._loop is not None:
                self._loop.call_soon(self._read)

    def _deliver(self, message: FromEngine) -> None:
        if self._failed:
            return
        self._failed = isinstance(message, Failed)
        self._on_message(message)

    def _wait(self, process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        process.wait()
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._process_ended, loop)

    def _process_ended(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ended.set()
        if not self._stopping:
            loop.call_later(_DRAIN_SECONDS, self._report_death)

    def _report_death(self) -> None:
        how = how_it_ended(self.exit_code or 0)
        self._deliver(Failed("EngineFailed", f"the engine process ended by {how}"))
