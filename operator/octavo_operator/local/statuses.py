"""The runner's state as a PodStatus, exactly as a kubelet writes it; pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from octavo_operator.local.sandbox import Manifest

Phase = Literal["Pending", "Running", "Succeeded", "Failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One finished run; times in seconds of the epoch."""

    exit_code: int
    started_at: float
    finished_at: float
    message: str = ""
    reason: str = ""  # "": Completed or Error by the exit code
    container_id: str = ""


def never_ran(now: float) -> Ended:
    """What a kubelet reports of a container that its pod's end found waiting."""
    return Ended(
        exit_code=137,
        started_at=now,
        finished_at=now,
        reason="ContainerStatusUnknown",
        message="The container was stopped before it ran",
    )


@dataclass(slots=True, kw_only=True)
class ContainerState:
    """What the runner knows of one container; waiting unless `started_at` or `ended` is set."""

    name: str
    image: str
    waiting_reason: str = "ContainerCreating"
    waiting_message: str = ""
    started_at: float | None = None
    ended: Ended | None = None
    last: Ended | None = None  # the run before the current one
    restarts: int = 0
    started: bool = False  # runs, and its startup probe (if any) has passed
    ready: bool = False  # its readiness probe (if any) passes
    container_id: str = ""

    @property
    def kind(self) -> Literal["waiting", "running", "terminated"]:
        if self.ended is not None:
            return "terminated"
        return "waiting" if self.started_at is None else "running"


@dataclass(slots=True, kw_only=True)
class PodState:
    """`closing`: told to stop, nothing restarts; `failure`: (reason, message) of a refusal."""

    pod: Manifest
    start_time: float
    pod_ip: str = ""
    host_ip: str = ""
    init: list[ContainerState] = field(default_factory=list)
    containers: list[ContainerState] = field(default_factory=list)
    closing: bool = False
    failure: tuple[str, str] | None = None


def timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod_status(state: PodState, previous: Manifest, now: float) -> Manifest:
    """The whole status; `previous` gives transition times and the conditions of other writers."""
    phase = decide_phase(state)
    status: Manifest = {
        "phase": phase,
        "conditions": _conditions(state, phase, previous, now),
        "startTime": timestamp(state.start_time),
        "containerStatuses": [container_status(c) for c in state.containers],
    }
    if state.init:
        status["initContainerStatuses"] = [container_status(c, init=True) for c in state.init]
    if state.host_ip:
        status |= {"hostIP": state.host_ip, "hostIPs": [{"ip": state.host_ip}]}
    if state.pod_ip:
        status |= {"podIP": state.pod_ip, "podIPs": [{"ip": state.pod_ip}]}
    if state.failure:
        status["reason"], status["message"] = state.failure
    if generation := state.pod["metadata"].get("generation"):
        status["observedGeneration"] = generation
    for kept in ("qosClass", "nominatedNodeName"):
        if kept in previous:
            status[kept] = previous[kept]
    return status


def decide_phase(state: PodState) -> Phase:
    """A kubelet's getPhase: from the containers' states and the restart policy."""
    if state.failure:
        return "Failed"
    policy = state.pod["spec"].get("restartPolicy", "Always")
    failed_init = any(_exit_code(c) not in (None, 0) for c in state.init)
    if failed_init and (policy == "Never" or state.closing):
        return "Failed"
    ended = [c for c in state.containers if c.kind == "terminated"]
    stopped = [c for c in state.containers if _exit_code(c) is not None]
    running = [c for c in state.containers if c.kind == "running"]
    if state.closing and not running and len(ended) == len(state.containers):
        return "Succeeded" if all(_exit_code(c) == 0 for c in ended) else "Failed"
    if not is_initialized(state) or len(stopped) + len(running) < len(state.containers):
        return "Pending"
    if running or policy == "Always":
        return "Running"
    if all(_exit_code(c) == 0 for c in stopped):
        return "Succeeded"
    return "Failed" if policy == "Never" else "Running"


def _exit_code(container: ContainerState) -> int | None:
    """Of the run that ended last, None if it runs now or never ran."""
    if container.kind == "running":
        return None
    ended = container.ended or container.last
    return None if ended is None else ended.exit_code


def is_initialized(state: PodState) -> bool:
    return all(c.ended is not None and c.ended.exit_code == 0 for c in state.init)


def _conditions(
    state: PodState, phase: Phase, previous: Manifest, now: float
) -> list[dict[str, Any]]:
    before = {c["type"]: c for c in previous.get("conditions") or ()}
    over = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(phase)
    uninitialized = [
        c.name for c in state.init if not (c.ended is not None and c.ended.exit_code == 0)
    ]
    unready = [c.name for c in state.containers if not c.ready]
    ready: tuple[str, str, str] = ("True", "", "")
    if over:
        ready = ("False", over, "")
    elif unready:
        message = f"containers with unready status: [{' '.join(unready)}]"
        ready = ("False", "ContainersNotReady", message)
    initialized: tuple[str, str, str] = ("True", "", "")
    if uninitialized:
        message = f"containers with incomplete status: [{' '.join(uninitialized)}]"
        initialized = ("False", "ContainersNotInitialized", message)
    elif phase == "Succeeded":
        initialized = ("True", "PodCompleted", "")
    wanted = {
        "PodReadyToStartContainers": ("True" if state.pod_ip else "False", "", ""),
        "Initialized": initialized,
        "Ready": ready,
        "ContainersReady": ready,
    }
    result: list[dict[str, Any]] = []
    for kind, (value, reason, message) in wanted.items():
        old = before.pop(kind, {})
        since = old["lastTransitionTime"] if old.get("status") == value else timestamp(now)
        condition = {"type": kind, "status": value, "lastTransitionTime": since}
        condition["lastProbeTime"] = None
        if generation := state.pod["metadata"].get("generation"):
            condition["observedGeneration"] = generation
        condition |= {k: v for k, v in (("reason", reason), ("message", message)) if v}
        result.append(condition)
    return result + list(before.values())


def container_status(container: ContainerState, *, init: bool = False) -> dict[str, Any]:
    """An init container is ready when it completed."""
    completed = container.ended is not None and container.ended.exit_code == 0
    status: dict[str, Any] = {
        "name": container.name,
        "image": container.image,
        "imageID": "",
        "ready": completed if init else container.ready,
        "started": container.started,
        "restartCount": container.restarts,
        "state": _current(container),
        "lastState": {} if container.last is None else {"terminated": _terminated(container.last)},
    }
    if container.container_id:
        status["containerID"] = container.container_id
    return status


def _current(container: ContainerState) -> dict[str, Any]:
    if container.ended is not None:
        return {"terminated": _terminated(container.ended)}
    if container.started_at is not None:
        return {"running": {"startedAt": timestamp(container.started_at)}}
    waiting = {"reason": container.waiting_reason}
    if container.waiting_message:
        waiting["message"] = container.waiting_message
    return {"waiting": waiting}


def _terminated(ended: Ended) -> dict[str, Any]:
    status: dict[str, Any] = {
        "exitCode": ended.exit_code,
        "reason": ended.reason or ("Error" if ended.exit_code else "Completed"),
        "startedAt": timestamp(ended.started_at),
        "finishedAt": timestamp(ended.finished_at),
    }
    if ended.message:
        status["message"] = ended.message
    if ended.container_id:
        status["containerID"] = ended.container_id
    return status
