"""What is wrong with a pod, in one reason and one sentence. Pure: a dict in, a Problem out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from octavo_operator import conditions, names
from octavo_operator.conditions import MODEL_READY, WORKLOAD_READY, Problem

_PULL_REASONS = {
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
}
_CONFIG_REASONS = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "PreCreateHookError",
    "PreStartHookError",
    "PostStartHookError",
}
_LONGEST_WORDS = 300


def count_restarts(pod: Mapping[str, Any]) -> int:
    """Of the container whose end is the pod's problem; 0 if there is none."""
    ended = _find_ended_status(_statuses(pod))
    return 0 if ended is None else int(ended.get("restartCount") or 0)


def find_problem(pod: Mapping[str, Any]) -> Problem | None:
    """None for a pod that is ready, or on its way without a mishap so far."""
    status, statuses = pod.get("status") or {}, _statuses(pod)
    if status.get("phase") == "Failed":
        failed = _find_ended(statuses)
        if failed is None or status.get("reason"):
            return Problem(
                WORKLOAD_READY,
                status.get("reason") or conditions.EVICTED,
                status.get("message") or "the pod failed",
            )
        return failed
    for condition in status.get("conditions") or []:
        if (
            condition.get("type") == "PodScheduled"
            and condition.get("status") == "False"
            and condition.get("reason") == "Unschedulable"
        ):
            return Problem(
                WORKLOAD_READY, conditions.UNSCHEDULABLE, condition.get("message") or "no node fits"
            )
    return _find_waiting(statuses) or _find_ended(statuses)


def _find_waiting(statuses: list[Mapping[str, Any]]) -> Problem | None:
    for each in statuses:
        waiting = (each.get("state") or {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _PULL_REASONS:
            return Problem(
                WORKLOAD_READY,
                conditions.IMAGE_PULL_BACK_OFF,
                message or f"the image {each.get('image', '')} cannot be pulled",
            )
        if reason in _CONFIG_REASONS:
            return Problem(
                WORKLOAD_READY,
                conditions.CONTAINER_CONFIG_ERROR,
                message or f"the container {each.get('name')} cannot be created",
            )
    return None


def _statuses(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of its containers, in the order in which they start."""
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _find_ended(statuses: list[Mapping[str, Any]]) -> Problem | None:
    """Why a container that is not ready ended the last time, even while it starts again.

    The reason would otherwise flicker between the mishap and Loading at every restart.
    """
    each = _find_ended_status(statuses)
    if each is None:
        return None
    if ended := _mishap(each):
        return _explain_end(each, ended)
    return Problem(
        WORKLOAD_READY,
        conditions.CRASH_LOOP_BACK_OFF,
        f"the container {each.get('name')} ends again and again",
    )


def _find_ended_status(statuses: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    for each in statuses:
        waiting = (each.get("state") or {}).get("waiting") or {}
        loops = waiting.get("reason") == "CrashLoopBackOff"
        if not each.get("ready") and (loops or _mishap(each)):
            return each
    return None


def _mishap(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Its last end, if that was none of success."""
    state, last = status.get("state") or {}, status.get("lastState") or {}
    ended: Mapping[str, Any] | None = state.get("terminated") or last.get("terminated")
    return ended if ended and ended.get("exitCode") != 0 else None


def _explain_end(status: Mapping[str, Any], ended: Mapping[str, Any]) -> Problem:
    text = ended.get("message") or ""
    if (said := read_startup_error(text)) is not None:
        return Problem(MODEL_READY, *said)
    name = status.get("name", names.CONTAINER)
    if ended.get("reason") == "OOMKilled":
        return Problem(
            MODEL_READY,
            conditions.OUT_OF_MEMORY,
            f"the container {name} was killed because it exceeded its memory limit; raise "
            "resources.limits.memory or choose a smaller model or kvCacheMemory",
        )
    code = ended.get("exitCode")
    cause = f"ended with exit code {code}"
    if code == 137:
        cause += " (killed: a failed liveness probe, a node out of memory, or a drain out of time)"
    times = status.get("restartCount", 0)
    again = f" {times} times" if times > 1 else ""
    words = last_words(text)
    said_words = f", last words: {words}" if words else ""
    return Problem(
        WORKLOAD_READY,
        conditions.CRASH_LOOP_BACK_OFF,
        f"the container {name} {cause}{again}{said_words}",
    )


def read_startup_error(text: str) -> tuple[str, str] | None:
    """(reason, message) from the server's JSON line, the last one if there are several."""
    for line in reversed(text.splitlines()):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and isinstance(said.get("message"), str):
            reason = said.get("reason")
            if isinstance(reason, str) and re.fullmatch(r"[A-Z][A-Za-z0-9]{0,63}", reason):
                return reason, said["message"][:4096]
    return None


def last_words(text: str) -> str:
    """The last line that says something, of a log's tail."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_LONGEST_WORDS] if lines else ""
