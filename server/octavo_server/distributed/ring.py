"""Frames from one process to several others of the host, through memory that they share.

The memory is a ring of bytes without a name, so that none is left behind and no two servers meet in
it. Each reader has two counters of the kernel (eventfd) beside it: `news`, bytes written that it
has not been told of, and `room`, bytes that it has read since the writer last asked. Nothing else
is shared, so their system calls also order the copies, whatever the processor.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import time
from collections.abc import Callable

import msgspec

CAPACITY = 4 << 20
"""A decode step of 512 rows is 6 KB, a prompt of 131,072 tokens 400 KB. What is longer passes in
pieces."""

SPIN_SECONDS = 100e-6
"""A reader looks so long before it sleeps: waking takes the kernel 5 to 50 us, which steps of small
models, under a millisecond, would feel."""

_LOOK_MILLISECONDS = 1000
"""Of a writer that waits for room: then it asks whether the readers still live."""

_LENGTH = struct.Struct("<Q")


class Handles(msgspec.Struct):
    """Descriptors, as a child inherits them: the ring's memory, and a pair for each reader."""

    memory: int
    news: list[int]
    room: list[int]

    @property
    def all(self) -> list[int]:
        return [self.memory, *self.news, *self.room]


def make_ring(readers: int, capacity: int = CAPACITY) -> Handles:
    """`close` of every descriptor is the caller's."""
    memory = os.memfd_create("octavo-steps")
    os.ftruncate(memory, capacity)
    return Handles(
        memory,
        [os.eventfd(0) for _ in range(readers)],
        [os.eventfd(capacity) for _ in range(readers)],
    )


class Writer:
    """The one writer; not for several threads."""

    def __init__(self, handles: Handles) -> None:
        self._handles = handles
        self._bytes = mmap.mmap(handles.memory, 0)
        self._at = 0
        self._room = [0] * len(handles.room)  # bytes that each reader leaves free, or more

    def send(self, frame: bytes, check: Callable[[], None] = lambda: None) -> None:
        """Waits while a reader is a whole ring behind; `check` may raise meanwhile."""
        left = memoryview(_LENGTH.pack(len(frame)) + frame)
        most = len(self._bytes) // 2
        while left:
            part = left[:most]
            self._wait_for_room(len(part), check)
            for piece in (part[: len(self._bytes) - self._at], part[len(self._bytes) - self._at :]):
                self._bytes[self._at : self._at + len(piece)] = piece
                self._at = (self._at + len(piece)) % len(self._bytes)
            for news in self._handles.news:
                os.eventfd_write(news, len(part))
            left = left[most:]

    def _wait_for_room(self, count: int, check: Callable[[], None]) -> None:
        for reader, room in enumerate(self._handles.room):
            if self._room[reader] < count:
                poll = select.poll()
                poll.register(room, select.POLLIN)
            while self._room[reader] < count:
                if poll.poll(_LOOK_MILLISECONDS):
                    self._room[reader] += os.eventfd_read(room)
                else:
                    check()
            self._room[reader] -= count


class Reader:
    """One of the readers; not for several threads."""

    def __init__(self, handles: Handles, reader: int, spin_seconds: float = SPIN_SECONDS) -> None:
        self._news, self._room = handles.news[reader], handles.room[reader]
        self._poll = select.poll()
        self._poll.register(self._news, select.POLLIN)
        self._spin_seconds = spin_seconds
        self._bytes = mmap.mmap(handles.memory, 0, access=mmap.ACCESS_READ)
        self._at = 0
        self._there = 0  # bytes that it was told of and has not read

    def receive(self) -> bytes:
        """The next frame; waits for it."""
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size))
        return self._take(length)

    def _take(self, count: int) -> bytes:
        parts = []
        while count:
            if not self._there:
                self._wait()
            part = min(count, self._there, len(self._bytes) - self._at)
            parts.append(self._bytes[self._at : self._at + part])
            os.eventfd_write(self._room, part)
            self._at = (self._at + part) % len(self._bytes)
            self._there -= part
            count -= part
        return b"".join(parts)

    def _wait(self) -> None:
        until = time.perf_counter() + self._spin_seconds
        while not self._poll.poll(0) and time.perf_counter() < until:
            pass
        self._there += os.eventfd_read(self._news)  # sleeps while it is 0
