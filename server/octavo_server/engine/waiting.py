"""Requests that wait for a row: by priority, then first come, first served, in two lines.

Rows with penalties need one of few count slots (`SchedulerConfig.count_slots`). Who waits for one
lets those pass who need none, and is first again once there is one: order within a line never
changes, and between the two it is that of priority and arrival.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, islice

from octavo_server.engine.sequence import Sequence


def _turn(sequence: Sequence) -> tuple[int, int]:
    return sequence.priority, sequence.turn


class Waiting:
    """Iterates in the order of turns; nothing takes longer in a long line."""

    def __init__(self) -> None:
        self._plain = _Line()
        self._counted = _Line()
        # Turns of those who came back from a row count down, from before all others'.
        self._next = 0
        self._before = -1
        self.num_tokens = 0
        """Of all who wait."""

    def __len__(self) -> int:
        return self._plain.length + self._counted.length

    def __iter__(self) -> Iterator[Sequence]:
        return heapq.merge(self._plain, self._counted, key=_turn)

    def append(self, sequence: Sequence) -> None:
        sequence.turn = self._next
        self._next += 1
        self.num_tokens += len(sequence.token_ids)
        self._line(sequence).put(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """It had a row already, and is the first of its priority now."""
        sequence.turn = self._before
        self._before -= 1
        self.num_tokens += len(sequence.token_ids)
        self._line(sequence).put(sequence, first=True)

    def first(self, free_slots: int) -> Sequence | None:
        """Whose turn it is, with so many count slots free; it stays in line."""
        plain = self._plain.first()
        counted = self._counted.first() if free_slots else None
        if plain is None or counted is None:
            return plain or counted
        return min(plain, counted, key=_turn)

    def take(self, sequence: Sequence) -> None:
        """Out of the line whose `first` it was."""
        assert self._line(sequence).first() is sequence, "taken out of turn"
        self.remove(sequence)

    def remove(self, sequence: Sequence) -> None:
        self._line(sequence).remove(sequence)
        self.num_tokens -= len(sequence.token_ids)

    def startable(self, rows: int, free_slots: int) -> Iterator[Sequence]:
        """Who could start on so many rows, if pages were plenty."""
        if not self._plain.length and not self._counted.length:
            return iter(())  # asked in every step
        return islice(chain(islice(self._counted, free_slots), self._plain), rows)

    def _line(self, sequence: Sequence) -> _Line:
        return self._counted if sequence.needs_counts else self._plain


class _Line:
    """A queue for each priority that somebody has; the smallest number is served first."""

    def __init__(self) -> None:
        # NOTE: an OrderedDict is a linked list: one client that goes may take thousands along.
        self._queues: dict[int, OrderedDict[Sequence, None]] = {}
        self._priorities: list[int] = []  # those of the queues, sorted
        self.length = 0

    def __iter__(self) -> Iterator[Sequence]:
        return chain.from_iterable(self._queues[priority] for priority in self._priorities)

    def first(self) -> Sequence | None:
        return next(iter(self._queues[self._priorities[0]])) if self._priorities else None

    def put(self, sequence: Sequence, *, first: bool = False) -> None:
        queue = self._queues.get(sequence.priority)
        if queue is None:
            queue = self._queues[sequence.priority] = OrderedDict()
            insort(self._priorities, sequence.priority)
        queue[sequence] = None
        if first:
            queue.move_to_end(sequence, last=False)
        self.length += 1

    def remove(self, sequence: Sequence) -> None:
        queue = self._queues[sequence.priority]
        del queue[sequence]
        if not queue:
            del self._queues[sequence.priority]
            del self._priorities[bisect_left(self._priorities, sequence.priority)]
        self.length -= 1
