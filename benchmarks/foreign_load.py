"""How much of the machine other processes took while something was measured."""

from __future__ import annotations

import os
import time

import psutil


class ForeignLoad:
    """From its making on: CPU time that neither this process nor its descendants used."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._total = _machine_seconds()
        self._own = _own_seconds()

    def share(self) -> float:
        """Of all cores, 0 to 1; includes what a hypervisor took away."""
        foreign = (_machine_seconds() - self._total) - (_own_seconds() - self._own)
        capacity = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return max(0.0, foreign / capacity)


def _own_seconds() -> float:
    """CPU seconds of this process and every descendant that lives; servers live all along."""
    me = psutil.Process()
    seconds = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        seconds += times.user + times.system
    return seconds


def _machine_seconds() -> float:
    times = psutil.cpu_times()
    busy = sum(times) - times.idle - getattr(times, "iowait", 0.0)
    return float(busy - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))
