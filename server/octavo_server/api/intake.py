"""What requests hold before they are admitted: bodies that still come, texts to be tokenised.

Both are bounded over all requests, so that many large ones at once cost time, not the process.
Bodies of usual size need no place: nobody can keep them out by sending large ones slowly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request

from octavo_server.api.errors import BodyTooLarge, ClientGone, Overloaded
from octavo_server.text.prompt import INLINE_CHARACTERS

if TYPE_CHECKING:
    from octavo_server.text.prompt import TokenizerPool

T = TypeVar("T")

REASONS = ("max_body_bytes", "tokenizer")
LARGE_BYTES = 1024 * 1024
LARGE_BODIES = 8  # of full size; all large ones that come share so much memory
MAX_CHARACTERS = 64 * 1024 * 1024  # waiting for the tokenizer: some 10 s of its two threads


class Intake:
    """One server's. `refused` counts, by reason."""

    def __init__(self, max_body_bytes: int, refused: dict[str, int]) -> None:
        self._limit = max_body_bytes
        self._refused = refused
        self.large_bytes = 0
        self.characters = 0

    async def read_body(self, request: Request) -> bytes:
        """The whole body; `BodyTooLarge` as soon as it is known to exceed the limit."""
        limit = self._limit
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise BodyTooLarge(f"the body has {declared} bytes; the limit is {limit}")
        parts: list[bytes] = []
        size = held = 0
        try:
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone("the client closed the connection")
                part: bytes = message.get("body", b"")
                size += len(part)
                if size > limit:
                    raise BodyTooLarge(f"the body exceeds {limit} bytes")
                if size > LARGE_BYTES:
                    self._check_large(size - held)
                    self.large_bytes += size - held
                    held = size
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
        finally:
            self.large_bytes -= held

    async def in_pool(self, pool: TokenizerPool, work: Callable[[], T], *, size: int) -> T:
        """`pool.run`; `Overloaded` where too much waits for it. No text alone is too much."""
        if size <= INLINE_CHARACTERS:
            return work()
        if self.characters and self.characters + size > MAX_CHARACTERS:
            self._refuse(REASONS[1], "too much text waits to be tokenised: try again later")
        self.characters += size
        try:
            return await pool.run(work, size=size)
        finally:
            self.characters -= size

    def _check_large(self, more: int) -> None:
        if self.large_bytes and self.large_bytes + more > LARGE_BODIES * self._limit:
            self._refuse(REASONS[0], "too many large bodies are being read: try again later")

    def _refuse(self, reason: str, message: str) -> None:
        self._refused[reason] += 1
        raise Overloaded(message, status=503, seconds=1)
