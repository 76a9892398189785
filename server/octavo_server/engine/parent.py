"""A process that ends with its parent, however that died: no orphan may hold a GPU."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
from contextlib import suppress

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent_pid: int, *, by_signal: bool = True) -> None:
    """Standard input must be a pipe whose other end the parent holds open.

    `by_signal`: the kernel kills this process with the *thread* that started it, so only where that
    is one that lives as long as its process.
    """
    if sys.platform == "linux":
        if by_signal:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(1)  # It died before the line above.
    threading.Thread(target=_watch, args=(parent_pid,), name="parent-watch", daemon=True).start()


def _watch(parent_pid: int) -> None:
    """Until standard input ends, or the parent does: a process that it forked may hold the pipe."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    if sys.platform == "linux":
        with suppress(OSError):  # an old or a guarded kernel
            poll.register(os.pidfd_open(parent_pid), select.POLLIN)
    # os.read, not the buffered reader: a thread that holds its lock would abort the interpreter's
    # exit.
    while all(descriptor == 0 and os.read(0, 4096) for descriptor, _ in poll.poll()):
        pass
    os._exit(1)
