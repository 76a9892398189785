"""What `octavo up` prints: a row per change of a pod, a line per event, logs with pod names."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from octavo_operator.local.sandbox import Manifest

UNTYPED = "Error"
MISSING = "CreateContainerConfigError"
UNMOUNTED = "FailedMount"
LOG_NAME = re.compile(r"(0|[1-9][0-9]{0,8})\.log")


@dataclass(frozen=True, slots=True)
class Failure:
    """`reason` is what the server wrote into its termination message, else "Error"."""

    container_id: str  # of the run that failed; "" if the pod was refused
    reason: str
    sentence: str


def explain_failure(status: Manifest) -> Failure | None:
    """The run that failed last, or what a container waits for in vain; None if nothing is wrong.

    `octavo up` has all objects from the start: one that is missing now will not come.
    """
    if status.get("reason"):
        return Failure("", str(status["reason"]), str(status.get("message", "")))
    every = [*status.get("initContainerStatuses", ()), *status["containerStatuses"]]
    for container in every:
        waiting = container["state"].get("waiting") or {}
        if waiting.get("reason") == MISSING:
            return Failure("", MISSING, with_remedy(str(waiting.get("message", ""))))
        for state in (container["state"], container["lastState"]):
            ended = state.get("terminated")
            if ended and ended["exitCode"]:
                return Failure(str(ended.get("containerID", "")), *read_message(ended))
    return None


def with_remedy(sentence: str) -> str:
    """A kubelet's sentence about a missing object, with what to do about it here."""
    found = re.search(r'\b(secret|configmap) "[^"]*" not found$', sentence)
    kind = {"secret": "Secret", "configmap": "ConfigMap"}
    return f"{sentence}; add the {kind[found[1]]} to a file given with -f" if found else sentence


def read_message(ended: Manifest) -> tuple[str, str]:
    """From the server's JSON line, else from the text's last line, else from the exit code."""
    text = str(ended.get("message", "")).strip()
    last = text.splitlines()[-1] if text else ""
    try:
        words = json.loads(last)
        return str(words["reason"]), str(words["message"])
    except (ValueError, TypeError, KeyError):
        code = ended["exitCode"]
        return UNTYPED, f"exited with {code}" + (f": {last}" if last else "")


def state_word(status: Manifest) -> str:
    """As in the STATUS column of `kubectl get pods`, with Ready and Starting for Running."""
    if status.get("reason"):
        return str(status["reason"])
    for index, container in enumerate(status.get("initContainerStatuses", ())):
        ended = container["state"].get("terminated")
        if not ended or ended["exitCode"]:
            return f"Init:{index}/{len(status['initContainerStatuses'])}"
    for container in status["containerStatuses"]:
        if "waiting" in container["state"]:
            reason = str(container["state"]["waiting"]["reason"])
            return "Starting" if reason == "ContainerCreating" else reason
        if "terminated" in container["state"]:
            return str(container["state"]["terminated"]["reason"])
    if is_ready(status):
        return "Ready"
    started = all(container["started"] for container in status["containerStatuses"])
    return "NotReady" if started else "Loading"


def is_ready(status: Manifest) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status["conditions"])


class Console:
    """Prints through `write` (a line each); times are seconds since its making."""

    def __init__(self, names: list[str], write: Callable[[str], None]) -> None:
        self._began = time.monotonic()
        self._width = max([len(name) for name in names] + [3])
        self._write = write
        self._shown: dict[str, tuple[str, int]] = {}
        self._last_event: dict[str, tuple[str, str]] = {}
        self._were_ready: set[str] = set()
        self._stopping = False
        self._row("POD", "STATUS", "RESTARTS", "SECONDS", "URL")

    def status(self, name: str, status: Manifest, url: str) -> None:
        """A row if the word or the number of restarts changed."""
        word = state_word(status)
        if word == "NotReady" and name not in self._were_ready:
            word = "Loading"  # started, and about to pass its readiness probe
        restarts = sum(int(container["restartCount"]) for container in status["containerStatuses"])
        if self._shown.get(name) == (word, restarts):
            return
        self._shown[name] = (word, restarts)
        ready = word == "Ready"
        if ready:
            self._were_ready.add(name)
        self._row(name, word, str(restarts), f"{self._seconds():.1f}", url if ready else "")

    def event(self, name: str, reason: str, message: str) -> None:
        """Failing probes are no news of a pod that was never ready, or that is being stopped."""
        key = (reason, message)
        expected = reason == "Unhealthy" and (self._stopping or name not in self._were_ready)
        told_by_rows = reason == "Started" or message.startswith("Stopping")
        if told_by_rows or expected or self._last_event.get(name) == key:
            return
        self._last_event[name] = key
        self._write(f"{name:{self._width}}  event: {reason}: {message}")

    def log(self, name: str, line: str) -> None:
        self._write(f"{name:{self._width}} | {line}")

    def stopping(self) -> None:
        self._stopping = True
        self._write("stopping once running requests have ended; Ctrl-C again kills")

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _row(self, name: str, status: str, restarts: str, seconds: str, url: str) -> None:
        row = f"{name:{self._width}}  {status:18}  {restarts:>8}  {seconds:>7}  {url}"
        self._write(row.rstrip())


class LogFollower:
    """New lines of a pod's log files, `folder/CONTAINER/RESTARTS.log`, in the order of the runs.

    Made before the pod runs: such files of another pod before are removed, others left alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        for file in self._files():
            file.unlink(missing_ok=True)

    def lines(self, *, final: bool = False) -> list[str]:
        """Complete lines since the last call; `final`: also an unfinished last one."""
        result: list[str] = []
        for file in self._files():
            try:
                with file.open("rb") as opened:
                    opened.seek(self._read.get(file, 0))
                    data = opened.read()
            except FileNotFoundError:
                continue
            end = len(data) if final else data.rfind(b"\n") + 1
            self._read[file] = self._read.get(file, 0) + end
            result += data[:end].decode(errors="replace").splitlines()
        return result

    def _files(self) -> list[Path]:
        files = [each for each in self._folder.glob("*/*.log") if LOG_NAME.fullmatch(each.name)]
        return sorted(files, key=lambda each: (each.parent.name, int(each.stem)))
