"""Child processes of the tests: their logs, their death with their parent, their clean end."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class DaemonFailed(Exception):
    """A daemon ended or did not become ready; the text ends with the last lines of its log."""


def die_with_parent() -> None:
    """For the child between fork and exec: SIGKILL when the thread that started it ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Daemon:
    """One long-running process whose output goes to a log file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log_folder / f"{name}.log"
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def raise_if_dead(self) -> None:
        """Raises DaemonFailed with the log's end if the process has ended."""
        if self.exit_code is not None:
            raise DaemonFailed(f"{self.name} exited with {self.exit_code}:\n{self.log_tail()}")

    def log_tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def signal_stop(self) -> None:
        if self.exit_code is None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL; returns once the process is reaped."""
        self._process.kill()
        self._process.wait()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """SIGTERM, then SIGKILL after the timeout; returns once the process is reaped."""
        self.signal_stop()
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def stop_all(daemons: Sequence[Daemon], timeout_seconds: float = 5.0) -> None:
    """Stops them together within one timeout."""
    for daemon in daemons:
        daemon.signal_stop()
    deadline = time.monotonic() + timeout_seconds
    for daemon in daemons:
        daemon.stop(max(deadline - time.monotonic(), 0.0))


def free_ports(count: int) -> list[int]:
    """Distinct TCP ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
