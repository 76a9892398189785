"""Whether another request may wait: the bounds on what is queued, and when to come again.

What waits is what the engine says waits, and what is on its way there: both are counted in
sequences (n for each prompt) and prompt tokens. Times are passed in.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from octavo_server.api.errors import Overloaded
from octavo_server.engine.messages import EngineStats
from octavo_server.errors import InvalidRequest

REASONS = ("max_num_queued_reqs", "max_num_queued_tokens", "max_reqs_per_key")
"""The flags that refuse, as the metric names them; the first two names are vLLM's."""

_SOONEST_SECONDS = 1
# OpenAI's clients follow Retry-After up to a minute and guess for themselves beyond it.
_LATEST_SECONDS = 60
# Half of what waits has started by then: there is room again, and still enough to do.
_PART = 0.5
_MEMORY_SECONDS = 30.0  # how long a measured pace counts


@dataclass(frozen=True, slots=True)
class Bounds:
    """0 is none. `per_key` bounds the sequences, running or waiting, of one API key."""

    requests: int = 0
    tokens: int = 0
    per_key: int = 0


class Admission:
    """Counts what is queued and refuses what would exceed the bounds. `refused` counts, by reason.

    A request takes its place with `admit`; each of its sequences then is `sent` or `withdrawn`, and
    has `ended` in the end. Requests that the engine could start at once wait for nobody, though
    they are on their way.
    """

    def __init__(self, bounds: Bounds, refused: dict[str, int]) -> None:
        self._bounds = bounds
        self._refused = refused
        self._most = bounds.requests or math.inf
        self._most_tokens = bounds.tokens or math.inf
        self._rows = 0
        self._cache_tokens = 0
        self._stats = EngineStats(running=0, waiting=0, kv_cache_usage=0.0)
        # Admitted, and not yet taken in by the engine; the tokens of each that was sent, in order.
        self._coming = 0
        self._coming_tokens = 0
        self._sent: deque[int] = deque()
        self._held: dict[int, int] = {}  # sequences of each key, if there is a bound on them
        self._pace = _Pace()

    def set_capacity(self, rows: int, cache_tokens: int) -> None:
        """What the engine can have running at once."""
        self._rows, self._cache_tokens = rows, cache_tokens

    @property
    def queued(self) -> tuple[int, int]:
        """Sequences and tokens that wait."""
        return self._queued(0, 0)

    def check(self, key: int | None, now: float) -> None:
        """Raise `Overloaded` where not even the smallest request could be admitted."""
        self._check_key(1, key, now)
        self._check_room(1, 1, now)

    def admit(self, sequences: int, tokens: int, key: int | None, now: float) -> None:
        """Take places for a request, or raise.

        `InvalidRequest` for one that is too large for an idle server; `Overloaded`, 429, where its
        key has too many; `Overloaded`, 503, where too many wait.
        """
        bounds = self._bounds
        for bound, asked, most, what in (
            (bounds.requests, sequences, bounds.requests + self._rows, "answers"),
            (bounds.tokens, tokens, bounds.tokens + self._cache_tokens, "prompt tokens"),
            (key is not None and bounds.per_key, sequences, bounds.per_key, "answers"),
        ):
            if bound and asked > most:
                raise InvalidRequest(
                    f"a request may ask for {most} {what} here, not {asked}: send several requests"
                )
        self._check_key(sequences, key, now)
        self._check_room(sequences, tokens, now)
        if key is not None and bounds.per_key:
            self._held[key] = self._held.get(key, 0) + sequences
        self._coming += sequences
        self._coming_tokens += tokens

    def sent(self, tokens: int) -> None:
        """A sequence of so many tokens is on its way to the engine."""
        self._sent.append(tokens)

    def withdrawn(self, sequences: int, tokens: int, key: int | None) -> None:
        """Sequences that were admitted will not be sent."""
        self._coming -= sequences
        self._coming_tokens -= tokens
        self._give_back(key, sequences)

    def ended(self, key: int | None) -> None:
        """A sequence that was sent has ended, however."""
        self._give_back(key, 1)

    def on_report(self, stats: EngineStats, now: float) -> None:
        """Take what the engine says after a step."""
        before, self._stats = self._stats, stats
        if not (stats.added or stats.waiting or before.waiting):
            return  # nothing but streams that go on
        tokens = 0
        for _ in range(stats.added):
            tokens += self._sent.popleft()
        self._coming -= stats.added
        self._coming_tokens -= tokens
        if before.waiting or stats.waiting:
            self._pace.add(
                before.waiting + stats.added - stats.waiting,
                before.waiting_tokens + tokens - stats.waiting_tokens,
                now,
                busy=before.waiting > 0,
            )

    def _give_back(self, key: int | None, sequences: int) -> None:
        if key is not None and key in self._held:
            self._held[key] -= sequences
            if not self._held[key]:
                del self._held[key]

    def _queued(self, sequences: int, tokens: int) -> tuple[int, int]:
        """What would wait, with so many more."""
        stats = self._stats
        rows = free = 0
        if not stats.waiting:
            rows = self._rows - stats.running
            free = int(self._cache_tokens * (1 - stats.kv_cache_usage))
        return (
            stats.waiting + max(0, self._coming + sequences - rows),
            stats.waiting_tokens + max(0, self._coming_tokens + tokens - free),
        )

    def _check_key(self, sequences: int, key: int | None, now: float) -> None:
        most = self._bounds.per_key
        if key is None or not most:
            return
        held = self._held.get(key, 0)
        if held + sequences > most:
            self._refused[REASONS[2]] += 1
            raise Overloaded(
                f"this API key may have {most} answers in the making and has {held}",
                status=429,
                seconds=self._seconds(self._pace.requests, held, now),
            )

    def _check_room(self, sequences: int, tokens: int, now: float) -> None:
        stats = self._stats
        if (
            stats.waiting + self._coming + sequences <= self._most
            and stats.waiting_tokens + self._coming_tokens + tokens <= self._most_tokens
        ):
            return  # the rule: not even if nothing could be started at once
        bounds, pace = self._bounds, self._pace
        would = self._queued(sequences, tokens)
        waits = self.queued
        for bound, then, there, left, what, reason in (
            (bounds.requests, would[0], waits[0], pace.requests, "requests", REASONS[0]),
            (bounds.tokens, would[1], waits[1], pace.tokens, "prompt tokens", REASONS[1]),
        ):
            if bound and then > bound:
                self._refused[reason] += 1
                raise Overloaded(
                    f"{there} {what} wait already and {bound} may: try again later, or another"
                    " replica",
                    status=503,
                    seconds=self._seconds(left, there, now),
                )

    def _seconds(self, left: float, there: int, now: float) -> int:
        """Until a part of what is there has gone, at the pace at which so much left lately."""
        busy = self._pace.seconds(now if self._stats.waiting else None)
        if not busy:
            return _SOONEST_SECONDS
        # As if the next were about to leave, where none has yet.
        wait = _PART * there * busy / max(left, 1.0)
        return math.ceil(min(max(wait, _SOONEST_SECONDS), _LATEST_SECONDS))


class _Pace:
    """What left the queue lately, and in how many seconds in which there was a queue."""

    def __init__(self) -> None:
        self.requests = 0.0
        self.tokens = 0.0
        self._seconds = 0.0
        self._last = 0.0

    def add(self, requests: int, tokens: int, now: float, *, busy: bool) -> None:
        passed = now - self._last if self._last else 0.0
        self._last = now
        fades = math.exp(-passed / _MEMORY_SECONDS)
        self._seconds = self._seconds * fades + (passed if busy else 0.0)
        # Less than nothing left where running ones were sent back to the queue.
        self.requests = self.requests * fades + (max(requests, 0) if busy else 0)
        self.tokens = self.tokens * fades + (max(tokens, 0) if busy else 0)

    def seconds(self, now: float | None) -> float:
        """`now` where there is a queue: the time since the last report counts, too."""
        return self._seconds + (0.0 if now is None else max(0.0, now - self._last))
