"""Lines for people on stderr: `[   3.5 s] text`, in seconds since the process began; torch-free."""

from __future__ import annotations

import logging
import sys
import time

_BEGAN = time.monotonic()


def seconds_running() -> float:
    """Since the process began."""
    return time.monotonic() - _BEGAN


def stamped(text: str) -> str:
    return f"[{seconds_running():6.1f} s] {text}"


class _Formatter(logging.Formatter):
    """Records in the form of the lines of a start: the level is said from warnings on."""

    def __init__(self, who: str) -> None:
        super().__init__()
        self._who = who

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return stamped(f"{self._who}{level}{super().format(record)}")


def install(who: str = "") -> None:
    """Send the log to stderr. `who` says which process of a server this is."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(who and f"{who}: "))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
