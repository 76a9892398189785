"""Stop strings over a stream of text.

The match that completes first wins (of several that end at the same character, the longest), so the
result does not depend on how the text is cut into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Holds back the end of the text while it may become one of `stops` (none of them empty)."""

    def __init__(self, stops: Sequence[str], *, include_in_output: bool = False) -> None:
        self._stops = list(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._include = include_in_output
        self.held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Return (text that may go out now, the stop string that matched or None).

        After a match nothing is held: the text ends at the match (after it, if included).
        """
        window = self.held + text
        match = self._first_match(window)
        if match is not None:
            start, stop = match
            self.held = ""
            return window[: start + len(stop)] if self._include else window[:start], stop
        keep = self._possible_start(window)
        self.held = window[keep:]
        return window[:keep], None

    def flush(self) -> str:
        """The held text, once it is clear that no more will come."""
        held, self.held = self.held, ""
        return held

    def _first_match(self, window: str) -> tuple[int, str] | None:
        best: tuple[int, int] | None = None  # (end, start): first the smallest end
        winner = ""
        for stop in self._stops:
            start = window.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best):
                best, winner = (start + len(stop), start), stop
        return None if best is None else (best[1], winner)

    def _possible_start(self, window: str) -> int:
        """Where the longest tail begins that may become a stop string; len(window) if none may."""
        earliest = len(window)
        for stop in self._stops:
            start = window.find(stop[0], max(0, len(window) - len(stop) + 1))
            while 0 <= start < earliest:
                if stop.startswith(window[start:]):
                    earliest = start
                    break
                start = window.find(stop[0], start + 1)
        return earliest
