"""Which objects need a pass, and when. Events only add keys here.

A key is in work at most once at a time; one that is added meanwhile gets another pass afterwards;
one that fails comes back after a growing delay, and the others do not wait for it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Awaitable, Callable

Key = tuple[str, str]
"""(namespace, name)"""

FIRST_BACK_OFF_SECONDS = 1.0
MOST_BACK_OFF_SECONDS = 120.0

BATCH_SECONDS = 0.1
"""How long an event waits for others of the same object: a rollout makes bursts of them."""

PASS_TIMEOUT_SECONDS = 120.0
"""Far above any pass; one that hangs must not hold its worker for ever."""

log = logging.getLogger(__name__)


class Queue:
    """All methods are for one event loop; `clock` gives seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._order = itertools.count()
        self._working: set[Key] = set()
        self._again: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()
        self._last_done = clock()

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: Key, delay_seconds: float = 0.0) -> None:
        """Asks for a pass; an earlier request for the same key is brought forward, never back."""
        due = self._clock() + delay_seconds
        waiting = self._again if key in self._working else self._due
        if due >= waiting.get(key, float("inf")):
            return
        waiting[key] = due
        if waiting is self._due:
            heapq.heappush(self._heap, (due, next(self._order), key))
            self._changed.set()

    def pop(self) -> Key | None:
        """A key whose time has come, now in work; None if there is none yet."""
        while self._heap and self._heap[0][0] <= self._clock():
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due and key not in self._working:
                del self._due[key]
                self._working.add(key)
                return key
        return None

    def done(self, key: Key, *, failed: bool = False) -> None:
        """The pass ended; a failed one is repeated after 1, 2, 4, ... 120 seconds."""
        self._working.discard(key)
        self._last_done = self._clock()
        again = self._again.pop(key, None)
        if failed:
            failures = self._failures.get(key, 0)
            self._failures[key] = failures + 1
            self.add(
                key, min(FIRST_BACK_OFF_SECONDS * 2 ** min(failures, 30), MOST_BACK_OFF_SECONDS)
            )
        else:
            self._failures.pop(key, None)
        if again is not None:
            self.add(key, max(0.0, again - self._clock()))

    def overdue_seconds(self) -> float:
        """How long the oldest key whose time has come waits for a worker; 0.0 if none does."""
        oldest = min(self._due.values(), default=float("inf"))
        return max(0.0, self._clock() - oldest)

    def idle_seconds(self) -> float:
        """Since a pass ended, or since the start."""
        return self._clock() - self._last_done

    async def take(self) -> Key:
        """`pop`, but it waits."""
        while (key := self.pop()) is None:
            self._changed.clear()
            wait = self._heap[0][0] - self._clock() if self._heap else None
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                pass
        if self._due:
            self._changed.set()  # another worker may find work too
        return key


async def work(queue: Queue, do: Callable[[Key], Awaitable[None]]) -> None:
    """One worker, until cancelled: takes keys and does them; an exception is logged and retried."""
    while True:
        key = await queue.take()
        failed = True
        try:
            async with asyncio.timeout(PASS_TIMEOUT_SECONDS):
                await do(key)
            failed = False
        except Exception as error:
            expected = type(error).__module__.startswith("octavo_operator")
            log.warning(
                "%s/%s: pass failed, trying again: %s",
                *key,
                error or type(error).__name__,
                exc_info=not expected,
            )
        finally:
            queue.done(key, failed=failed)
