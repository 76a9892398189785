"""The process between the runner and a container: no descendant of it outlives the runner.

Run as a script, `python -I -S launcher.py CONTROL STATUS USER GROUP ARGV...`, stdlib only:
  CONTROL  fd to read: each byte is the number of a signal for the container's first
           process; end of file means that the runner is gone: everything is killed.
  STATUS   fd to write: "pid N", then "error TEXT" if ARGV could not be executed, then end of file.
  USER, GROUP  numeric ids for the container, -1 to keep the caller's.
It exits with the container's exit code, 128 + signal if a signal ended it. All else in the
container dies with its first process, whatever its group or session, as in a PID namespace.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def prctl(option: int, value: int) -> None:
    """Linux only; elsewhere the control pipe alone tells of the runner's death."""
    call = getattr(ctypes.CDLL(None), "prctl", None)
    if call is not None:
        call(option, value, 0, 0, 0)


def start(argv: list[str], status: int, user: int, group: int) -> int:
    """Forks; the child becomes `argv` in a session of its own and dies with this process."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        # Python ignores SIGPIPE and SIGXFSZ, this file catches others: a container starts clean.
        for number in (
            signal.SIGPIPE,
            signal.SIGXFSZ,
            signal.SIGINT,
            signal.SIGTERM,
            signal.SIGCHLD,
        ):
            signal.signal(number, signal.SIG_DFL)
        if group >= 0:
            os.setgroups([])
            os.setgid(group)
        if user >= 0:
            os.setuid(user)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(137)
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(status, f"error exec {argv[0]!r}: {error.strerror}\n".encode())
    os._exit(128)


def own_children() -> list[int] | None:
    """None where the system does not tell."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return None


def kill_rest(session: int) -> None:
    """Kills what the container left; orphans come to this subreaper, so the loop finds them all."""
    while True:
        children = own_children()
        if children is None:
            try:
                os.killpg(session, signal.SIGKILL)
            except OSError:
                pass
            return
        for child in children:
            os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def reap(pid: int) -> int | None:
    """Collects all that ended; the exit code of `pid` if it is among them."""
    code = None
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if ended == 0:
            return code
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            code = 128 - code if code < 0 else code


def main() -> None:
    control, status, user, group = (int(word) for word in sys.argv[1:5])
    for fd in (control, status):
        os.set_inheritable(fd, False)
    runner = os.getppid()
    wake_read, wake_write = (
        os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
    )
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    pid = start(sys.argv[5:], status, user, group)
    os.write(status, f"pid {pid}\n".encode())
    os.close(status)
    watched = [control, wake_read]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
        numbers = os.read(control, 64) if control in ready else None
        # The parent-death signal is also sent when only the thread that started us ended.
        if numbers == b"" or os.getppid() != runner:
            numbers = bytes([signal.SIGKILL])
            watched = [wake_read]
            runner = os.getppid()
        for number in numbers or b"":
            os.kill(pid, number)
        code = reap(pid)
        if code is not None:
            kill_rest(pid)
            os._exit(code)


if __name__ == "__main__":
    main()
