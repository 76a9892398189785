"""Runs a group's process and watches it: one that hangs is ended, the rows after it still run."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from benchmarks.rows.reporting import parse_event
from benchmarks.rows.specification import GROUPS, Scenario
from benchmarks.servers import ROOT, SOURCE_ROOTS

_START_LIMIT_SECONDS = 150
_FIRST_SECONDS = 60.0
"""Until the first scenario begins: an engine that takes longer to start has failed."""

_LEAVE_SECONDS = 30
"""From the last scenario's end to the process's: its servers drain and stop."""

_POLL_SECONDS = 0.2
"""Between looks at whether the process lives."""

Listener = Callable[[dict[str, Any]], None]


def run_group(
    argv: Sequence[str],
    scenarios: Sequence[Scenario],
    log: Path,
    listen: Listener,
    ends_at: float = float("inf"),
) -> None:
    """Run `argv --scenarios ...` until every scenario ended or failed; `listen` gets its events.

    A scenario past its limit is reported as an "end" with an error, its process is killed with
    all its descendants, and another process goes on with the scenarios after it, as one does after
    a process that ended by itself. At `ends_at` (monotonic seconds) all of it ends.
    """
    left = list(scenarios)
    while left and time.monotonic() < ends_at:
        left = _run_once(argv, left, log, listen, ends_at)
    for scenario in left:
        listen({"event": "end", "scenario": scenario.id, "error": "not run: no time was left"})


def _run_once(
    argv: Sequence[str],
    scenarios: Sequence[Scenario],
    log: Path,
    listen: Listener,
    ends_at: float,
) -> list[Scenario]:
    """One process; returns the scenarios still to be run by another."""
    by_id = {scenario.id: scenario for scenario in scenarios}
    left = list(scenarios)
    current: Scenario | None = None
    command = [*argv, "--scenarios", ",".join(by_id)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=sink,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=_environment(),
            text=True,
            errors="replace",
            # Its servers share its group: one signal ends them, also when it is gone already.
            start_new_session=True,
        )
        lines: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process, lines, log), daemon=True)
        reader.start()
        deadline = time.monotonic() + _START_LIMIT_SECONDS
        problem = ""
        # Within the first scenario a group's server or engine starts.
        start = _FIRST_SECONDS
        try:
            while True:
                line = _next_line(process, lines, min(deadline, ends_at))
                if line is None:
                    ended = process.poll() is not None
                    problem = "over its time limit"
                    if ended:
                        problem = f"its process ended with {process.returncode}"
                    break
                event = parse_event(line)
                if event is None:
                    continue
                if event["event"] == "begin":
                    current = by_id[event["scenario"]]
                    deadline = time.monotonic() + start + current.limit_seconds
                elif event["event"] == "end":
                    left.remove(by_id[event["scenario"]])
                    current, start = None, 0.0
                    deadline = time.monotonic() + _LEAVE_SECONDS
                listen(event)
        finally:
            kill_tree(process)
    if not left:
        return []
    # Where nothing even began all of it fails: another start would fail as well.
    began = len(left) < len(scenarios)
    failed = [current] if current is not None else [] if began else left
    for scenario in failed:
        where = "" if current is not None else "before it began: "
        said = f"{where}{problem}; {log.name} ends with: {_last_line(log)}"
        listen({"event": "end", "scenario": scenario.id, "error": said})
    return [scenario for scenario in left if scenario not in failed]


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "nothing")


def _next_line(
    process: subprocess.Popen[str], lines: queue.Queue[str], deadline: float
) -> str | None:
    """None when the process has ended and all it said was read, or at the deadline."""
    while time.monotonic() < deadline:
        # NOTE: not the pipe's end but the process's: whatever it started may hold the pipe open.
        ended = process.poll() is not None
        try:
            return lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            if ended:
                return None
    return None


def _read(process: subprocess.Popen[str], lines: queue.Queue[str], log: Path) -> None:
    """Lines of the process to the queue, what is no event to the log as well."""
    assert process.stdout is not None
    with log.open("a", encoding="utf-8") as sink:
        for line in process.stdout:
            if parse_event(line) is None:
                sink.write(line)
                sink.flush()
            lines.put(line)


def kill_tree(process: subprocess.Popen[str]) -> None:
    """End a process that leads a session started here, and everything below it."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for each in below:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    psutil.wait_procs(below, timeout=10)


def group_argv(group: str, folders: dict[str, Path], logs: Path, options: list[str]) -> list[str]:
    """The command of a group's process. `folders`: model -> its folder."""
    kind, _, key = group.partition("-")
    assert group in GROUPS
    module = "over_http" if kind == "http" else kind
    argv = [sys.executable, "-m", f"benchmarks.rows.{module}"]
    if kind == "collectives":
        return [*argv, *options]
    if kind == "live":
        return [*argv, "--folder", str(folders["gpt2"]), "--logs", str(logs), *options]
    argv += ["--model", key, "--folder", str(folders[key])]
    return [*argv, *(["--logs", str(logs)] if kind == "http" else []), *options]


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *SOURCE_ROOTS, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
