"""A TCP proxy on 127.0.0.1 whose connections can be cut, or hang: a network with faults."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
CHUNK_BYTES = 1 << 14
START_SECONDS = 5.0


@dataclass(eq=False, slots=True)
class _Connection:
    to_client: asyncio.StreamWriter
    to_server: asyncio.StreamWriter
    life_bytes: int | None  # of answers, after which it is cut
    flows: asyncio.Event = field(default_factory=asyncio.Event)

    def cut(self) -> None:
        """At once, without a word of goodbye: the other ends get a reset."""
        for each in (self.to_client, self.to_server):
            _reset(each)
        self.flows.set()  # nobody waits for it any more


class TcpProxy:
    """`with TcpProxy(port) as proxy:` leads from `proxy.port` (of `host`) to `port`."""

    def __init__(self, target: int, host: str = "127.0.0.1") -> None:
        self._host = host
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._open: set[_Connection] = set()
        self._hanging = False
        self._life: Callable[[], int] | None = None
        self.connections = 0
        """How many were made until now."""
        self.cuts = 0
        self.port = 0

    def __enter__(self) -> TcpProxy:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._connected, self._host, 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> int:
        """Cuts all that are open, and says how many there were."""
        return self._do(self._cut())

    def cut_after(self, life: Callable[[], int] | None) -> None:
        """From now on each new one is cut after so many bytes of answers; None: no more."""
        self._do(self._set_life(life))

    def hang(self, *, new_ones: bool = True) -> None:
        """Nothing goes through any more, nor is anything closed; without `new_ones` only for those
        that are open now.
        """
        self._do(self._hang(new_ones))

    def flow(self) -> None:
        """What was held back goes on its way."""
        self._do(self._flow())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS)

    async def _cut(self) -> int:
        cut = [*self._open]
        for each in cut:
            each.cut()
        self.cuts += len(cut)
        return len(cut)

    async def _set_life(self, life: Callable[[], int] | None) -> None:
        self._life = life
        for each in self._open:
            each.life_bytes = None if life is None else life()

    async def _hang(self, new_ones: bool) -> None:
        self._hanging = new_ones
        for each in self._open:
            each.flows.clear()

    async def _flow(self) -> None:
        self._hanging = False
        for each in self._open:
            each.flows.set()

    async def _end(self) -> None:
        self._server.close()
        await self._cut()
        await asyncio.sleep(0.05)  # for the pumps to see it

    async def _connected(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _reset(to_client)
            return
        life = None if self._life is None else self._life()
        connection = _Connection(to_client, to_server, life)
        if not self._hanging:
            connection.flows.set()
        self._open.add(connection)
        there = asyncio.create_task(self._pump(connection, from_client, to_server))
        back = asyncio.create_task(self._pump(connection, from_server, to_client, answers=True))
        await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        self._open.discard(connection)
        for task in (there, back):
            task.cancel()
        connection.cut()

    async def _pump(
        self,
        connection: _Connection,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        *,
        answers: bool = False,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK_BYTES):
                await connection.flows.wait()
                left = connection.life_bytes
                if answers and left is not None:
                    connection.life_bytes = left - len(data)
                    if left <= len(data):
                        target.write(data[:left])  # in the middle of whatever it is
                        await target.drain()
                        self.cuts += 1
                        return
                target.write(data)
                await target.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    if not writer.transport.is_closing():
        at_once = struct.pack("ii", 1, 0)
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        writer.transport.abort()
