"""How far a download is: bytes counted by many threads, read by others."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

RATE_SECONDS = 10.0
"""The rate is that of the last so many seconds."""


@dataclass(frozen=True, slots=True)
class Progress:
    """`total` is 0 while it is not known; `rate` is bytes a second."""

    done: int
    total: int
    rate: float


class Meter:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._done = self._total = 0
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])

    def expect(self, total: int, done: int) -> None:
        """Of `total` bytes `done` are there already: they do not count as fetched now."""
        with self._guard:
            self._total, self._done = total, done
            self._marks = deque([(self._clock(), done)])

    def add(self, count: float) -> None:
        """May be negative: what arrived damaged is fetched again."""
        with self._guard:
            self._done += int(count)

    def read(self) -> Progress:
        with self._guard:
            now = self._clock()
            while len(self._marks) > 1 and self._marks[1][0] <= now - RATE_SECONDS:
                self._marks.popleft()
            then, before = self._marks[0]
            if now - self._marks[-1][0] >= 1.0:
                self._marks.append((now, self._done))
            seconds = now - then
            rate = (self._done - before) / seconds if seconds > 0 else 0.0
            done = min(self._done, self._total) if self._total else self._done
            return Progress(max(0, done), self._total, max(0.0, rate))
