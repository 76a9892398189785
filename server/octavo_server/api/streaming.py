"""Server-sent events: a chunk per token, written as raw ASGI messages.

A stream never ends silently: its last event is `[DONE]`, or an `error` event with OpenAI's body.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo_server.api.errors import ClientGone, error_body, error_response
from octavo_server.api.request_id import with_name
from octavo_server.api.requests import Choice, Group
from octavo_server.text.assemble import Delta

logger = logging.getLogger(__name__)

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # proxies must pass each event on at once
]


class Writer(Protocol):
    """How one endpoint spells its events."""

    def chunk(self, choice: Choice, delta: Delta) -> bytes:
        """The events of one delta, the endpoint's opening event before a choice's first."""
        ...

    def ending(self) -> bytes:
        """Events after the last delta (the usage, if asked for), without `[DONE]`."""
        ...


class EventStream(Response):
    """The response of a streaming request.

    Nothing is sent before the first delta, so that an early failure still has its status code.
    `close` is called in the end, however it came: it aborts what still runs.
    """

    def __init__(
        self,
        group: Group,
        writer: Writer,
        *,
        watcher: asyncio.Task[None],
        close: Callable[[], None],
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.raw_headers = list(_HEADERS)
        self._group = group
        self._writer = writer
        self._watcher = watcher
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            while deltas := await self._group.next():
                if not started:
                    started = True
                    await send(
                        {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                    )
                write = self._writer.chunk
                body = on_one_line(b"".join([write(choice, delta) for choice, delta in deltas]))
                await send({"type": "http.response.body", "body": body, "more_body": True})
            body = on_one_line(self._writer.ending()) + b"data: [DONE]\n\n"
            await send({"type": "http.response.body", "body": body})
        except ClientGone:
            return
        except Exception as error:
            if error_body(error)[0] == 500:
                logger.error("a stream ended with an error: %s", error)
            if not started:
                await with_name(error_response(error), scope)(scope, receive, send)
                return
            body = on_one_line(error_event(error))
            await send({"type": "http.response.body", "body": body})
        finally:
            self._watcher.cancel()
            self._close()


def on_one_line(events: bytes) -> bytes:
    """JSON in which no character is left that readers of lines may take for the end of one: U+0085,
    U+2028 and U+2029, which a server-sent event may have, and httpx and others split at.
    """
    if b"\xe2\x80" in events:
        events = events.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return events.replace(b"\xc2\x85", b"\\u0085")


def event(body: Any) -> bytes:
    """One event of any JSON body."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


def error_event(error: BaseException) -> bytes:
    """The last event of a stream that failed."""
    return b"event: error\n" + event(error_body(error)[1])
