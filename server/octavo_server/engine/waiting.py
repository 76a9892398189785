"""Requests that wait for a row: first come, first served, in two lines.

Rows with penalties need one of few count slots (`SchedulerConfig.count_slots`). Who waits for one
lets those pass who need none, and is first again once there is one: order within a line never
changes, and between the two it is that of arrival.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, islice
from operator import attrgetter

from octavo_server.engine.sequence import Sequence

_turn = attrgetter("turn")


class Waiting:
    """Iterates in the order of arrival; nothing takes longer in a long line."""

    def __init__(self) -> None:
        # NOTE: an OrderedDict is a linked list: one client that goes may take thousands along.
        self._plain: OrderedDict[Sequence, None] = OrderedDict()
        self._counted: OrderedDict[Sequence, None] = OrderedDict()
        # Turns of those who came back from a row count down, from before all others'.
        self._next = 0
        self._before = -1
        self.num_tokens = 0
        """Of all who wait."""

    def __len__(self) -> int:
        return len(self._plain) + len(self._counted)

    def __iter__(self) -> Iterator[Sequence]:
        return heapq.merge(self._plain, self._counted, key=_turn)

    def append(self, sequence: Sequence) -> None:
        sequence.turn = self._next
        self._next += 1
        self.num_tokens += len(sequence.token_ids)
        self._line(sequence)[sequence] = None

    def put_back(self, sequence: Sequence) -> None:
        """It had a row already, and is first now."""
        sequence.turn = self._before
        self._before -= 1
        self.num_tokens += len(sequence.token_ids)
        self._line(sequence)[sequence] = None
        self._line(sequence).move_to_end(sequence, last=False)

    def first(self, free_slots: int) -> Sequence | None:
        """Whose turn it is, with so many count slots free; it stays in line."""
        lines = [line for line in (self._plain, self._counted if free_slots else None) if line]
        return min((next(iter(line)) for line in lines), key=_turn, default=None)

    def take(self, sequence: Sequence) -> None:
        """Out of the line whose `first` it was."""
        taken, _ = self._line(sequence).popitem(last=False)
        assert taken is sequence, "taken out of turn"
        self.num_tokens -= len(sequence.token_ids)

    def remove(self, sequence: Sequence) -> None:
        del self._line(sequence)[sequence]
        self.num_tokens -= len(sequence.token_ids)

    def startable(self, rows: int, free_slots: int) -> Iterator[Sequence]:
        """Who could start on so many rows, if pages were plenty."""
        return islice(chain(islice(self._counted, free_slots), self._plain), rows)

    def _line(self, sequence: Sequence) -> OrderedDict[Sequence, None]:
        return self._counted if sequence.needs_counts else self._plain
