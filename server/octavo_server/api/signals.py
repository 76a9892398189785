"""SIGTERM and SIGINT before the event loop runs: remembered, so that none is lost or fatal.

Python's own reaction would be an exit code that is no 0, and none at all for a container's PID 1.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class EarlySignals:
    """Counts stop signals from `install` until `Run` puts its own handlers in place."""

    def __init__(self) -> None:
        self.count = 0

    def install(self) -> None:
        """To be called before the socket opens; does nothing outside the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
