"""The benchmark's HTTP client against a socket that says what it is told, in pieces."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from benchmarks.rows.client import (
    Answer,
    http_request,
    percentile,
    requests_per_second,
    run_share,
)

STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(text: str) -> bytes:
    return chunk(f"data: {text}\n\n".encode())


async def ask(pieces: Sequence[bytes], *, requests: int = 1) -> list[Answer]:
    """What the client makes of these pieces, written 10 ms apart on each connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sent = [http_request(port, "/v1/completions", {"prompt": "x"})] * requests
    async with server:
        return await asyncio.to_thread(run_share, port, sent, [0.0] * requests, time.monotonic())


async def test_a_whole_answer_in_pieces() -> None:
    body = b'{"usage": {"completion_tokens": 50}}'
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    answers = await ask([head[:20], head[20:] + body[:5], body[5:]], requests=3)
    assert [(a.status, a.completion_tokens, a.error) for a in answers] == [(200, 50, None)] * 3
    assert all(a.ended > a.sent for a in answers)
    assert all(not a.event_times for a in answers)


async def test_events_are_timed_as_they_come_and_done_is_none() -> None:
    pieces = [STREAM + event("1"), event("2") + event("3"), event("[DONE]") + chunk(b"")]
    (answer,) = await ask(pieces)
    assert answer.error is None
    assert len(answer.event_times) == 3
    first, second = answer.gap_seconds
    assert first > 0.005
    assert second == 0
    assert answer.token_seconds(3) == pytest.approx(first / 2)


async def test_a_chunk_and_an_event_may_be_torn_anywhere() -> None:
    wire = STREAM + event("1") + chunk(b"data: 2\n") + chunk(b"\n") + event("[DONE]") + chunk(b"")
    (answer,) = await ask([wire[i : i + 9] for i in range(0, len(wire), 9)])
    assert answer.error is None
    assert len(answer.event_times) == 2


async def test_a_refusal_is_an_error_with_its_body() -> None:
    (answer,) = await ask([b"HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nbusy"])
    assert (answer.status, answer.error) == (503, "busy")


async def test_a_stream_without_its_end_is_an_error() -> None:
    (answer,) = await ask([STREAM + event("1")])
    assert answer.error is not None
    assert "closed the connection" in answer.error


async def test_something_else_than_http_is_an_error() -> None:
    (answer,) = await ask([b"HTTP/1.1 200 OK\r\nServer: odd\r\n\r\n"])
    assert answer.error == "not HTTP: an answer without a length"


def test_a_rate_is_from_the_first_request_to_the_last_answer() -> None:
    assert requests_per_second([Answer(10.0, 11.0), Answer(10.5, 12.0)]) == 1.0


def test_percentiles_interpolate() -> None:
    assert percentile([4, 1, 3, 2], 0.5) == 2.5
    assert percentile([1, 2], 1.0) == 2
    assert percentile([7], 0.99) == 7
