"""A lean HTTP client that counts tokens as they come: raw asyncio protocols, several processes.

A usual client takes 100 us and more of Python a request and 50 us an event, which at 500 requests
at once is what one would measure. This one parses no JSON while the clock runs.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, Self

_LEAD_SECONDS = 0.5
"""From handing out the shares to the first request: every process has its connections open."""


@dataclass(slots=True)
class Answer:
    """One request. Times are `time.monotonic()`, one clock for all processes of a host."""

    sent: float
    ended: float = 0.0
    status: int = 0
    event_times: list[float] = field(default_factory=list)  # of each streamed token
    completion_tokens: int | None = None
    error: str | None = None

    @property
    def first_token_seconds(self) -> float:
        return self.event_times[0] - self.sent

    @property
    def gap_seconds(self) -> list[float]:
        """Between tokens that follow each other."""
        return [after - before for before, after in itertools.pairwise(self.event_times)]

    def token_seconds(self, tokens: int) -> float:
        """A token after the first one, by the time of the last."""
        return (self.event_times[-1] - self.event_times[0]) / (tokens - 1)


class Connection(asyncio.Protocol):
    """One keep-alive connection: a request, its answer, the next request."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._done: asyncio.Future[None] | None = None
        self._buffer = bytearray()
        self._body = bytearray()
        self._left: int | None = None  # bytes of the body; None: chunked
        self._in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def ask(self, request: bytes) -> Answer:
        """Send a whole request and wait for the whole answer. Raises ConnectionError."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError("the connection is closed")
        self._buffer.clear()
        self._body.clear()
        self._in_body = False
        self._done = asyncio.get_running_loop().create_future()
        self._answer = answer = Answer(time.monotonic())
        self._transport.write(request)
        await self._done
        _read_body(answer, bytes(self._body))
        return answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if self._done is None or self._done.done():
            return
        try:
            self._take(data, now)
        except ValueError as error:
            self._done.set_exception(ConnectionError(f"not HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError(f"the server closed the connection: {exc}"))

    def _take(self, data: bytes, now: float) -> None:
        assert self._answer is not None
        self._buffer += data
        if not self._in_body:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self._answer.status, self._left = _read_head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            self._in_body = True
        before = len(self._body)
        ended = self._take_chunks() if self._left is None else self._take_counted()
        # An event ends with an empty line; one that came in part is counted when its end comes.
        events = self._body.count(b"\n\n", max(0, before - 1))
        if events:
            self._answer.event_times += [now] * events
        if ended:
            self._answer.ended = now
            assert self._done is not None
            self._done.set_result(None)

    def _take_counted(self) -> bool:
        assert self._left is not None
        self._body += self._buffer
        self._left -= len(self._buffer)
        self._buffer.clear()
        return self._left <= 0

    def _take_chunks(self) -> bool:
        """Move whole chunks from the buffer to the body; True after the last one."""
        while (line := self._buffer.find(b"\r\n")) >= 0:
            size = int(self._buffer[:line].split(b";")[0], 16)
            end = line + 2 + size
            if len(self._buffer) < end + 2:
                return False
            self._body += self._buffer[line + 2 : end]
            del self._buffer[: end + 2]
            if size == 0:
                return True
        return False


def _read_head(head: bytes) -> tuple[int, int | None]:
    """Status, and the body's length (None: chunked). Raises ValueError."""
    first, *lines = head.split(b"\r\n")
    fields = {name.strip().lower(): value for name, _, value in (x.partition(b":") for x in lines)}
    length = fields.get(b"content-length")
    if length is None and b"chunked" not in fields.get(b"transfer-encoding", b""):
        raise ValueError("an answer without a length")
    return int(first.split()[1]), None if length is None else int(length)


def _read_body(answer: Answer, body: bytes) -> None:
    """What the answer says of itself, read when its clock has stopped."""
    if answer.status != 200:
        answer.error = body.decode(errors="replace")[:300]
    elif body.startswith(b"data:"):
        # The last event is [DONE], and every other one a token.
        if not body.endswith(b"data: [DONE]\n\n"):
            answer.error = f"the stream ended with {body[-200:].decode(errors='replace')}"
        answer.event_times.pop()
    else:
        answer.event_times.clear()
        answer.completion_tokens = json.loads(body).get("usage", {}).get("completion_tokens")


def http_request(port: int, path: str, body: dict[str, Any]) -> bytes:
    """A POST as it goes over the wire."""
    payload = json.dumps(body, separators=(",", ":")).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


def run_share(
    port: int, requests: Sequence[bytes], arrivals: Sequence[float], begin: float
) -> list[Answer]:
    """A process's part: request i leaves at `begin + arrivals[i]`, on a connection of its own
    that was opened before.
    """
    gc.collect()
    gc.disable()
    try:
        return asyncio.run(_run_share(port, requests, arrivals, begin))
    finally:
        gc.enable()


async def _run_share(
    port: int, requests: Sequence[bytes], arrivals: Sequence[float], begin: float
) -> list[Answer]:
    loop = asyncio.get_running_loop()
    opened = await asyncio.gather(
        *(loop.create_connection(Connection, "127.0.0.1", port) for _ in requests)
    )

    async def one(connection: Connection, request: bytes, after: float) -> Answer:
        await asyncio.sleep(max(0.0, begin + after - time.monotonic()))
        try:
            return await connection.ask(request)
        except ConnectionError as error:
            return Answer(time.monotonic(), error=str(error))
        finally:
            connection.close()

    return list(
        await asyncio.gather(
            *(
                one(connection, request, after)
                for (_, connection), request, after in zip(opened, requests, arrivals, strict=True)
            )
        )
    )


class Clients:
    """Processes that send; they live as long as the block, so that none starts under the clock."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))

    def __enter__(self) -> Self:
        for started in [self._pool.submit(time.sleep, 0.2) for _ in range(self._processes)]:
            started.result()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def send(self, port: int, requests: Sequence[bytes], arrivals: Sequence[float]) -> list[Answer]:
        """Send all, request i at `arrivals[i]` seconds after a common start; waits for the answers.

        Raises RuntimeError if one of them failed.
        """
        begin = time.monotonic() + _LEAD_SECONDS
        count = min(self._processes, len(requests))
        shares: list[Future[list[Answer]]] = [
            self._pool.submit(run_share, port, requests[i::count], arrivals[i::count], begin)
            for i in range(count)
        ]
        answers = [answer for share in shares for answer in share.result()]
        failed = [answer for answer in answers if answer.error is not None]
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(answers)} failed, first: {failed[0].error}")
        return answers


def requests_per_second(answers: Sequence[Answer]) -> float:
    """All requests over the time from the first one sent to the last one answered."""
    return len(answers) / (max(a.ended for a in answers) - min(a.sent for a in answers))


def percentile(values: Sequence[float], share: float) -> float:
    """With linear interpolation, as numpy's (and vLLM's benchmark). `share` is 0 to 1."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
