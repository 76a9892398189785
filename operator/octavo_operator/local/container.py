"""The life of one container: start, probe, stop, restart with back-off."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo_operator.local.backoff import Backoff
from octavo_operator.local.environment import command_line, container_environment
from octavo_operator.local.hooks import run_hook
from octavo_operator.local.probes import Target, port_number, watch
from octavo_operator.local.process import Process, StartFailed
from octavo_operator.local.resolver import MissingReference, Resolver
from octavo_operator.local.sandbox import Manifest, Mount, Sandbox
from octavo_operator.local.statuses import ContainerState, Ended, never_ran
from octavo_operator.local.volumes import Volumes

MESSAGE_BYTES = 4096
LOG_MESSAGE_BYTES = 2048
LOG_MESSAGE_LINES = 80
KEPT_LOGS = 5
AFTER_HOOK_SECONDS = 2.0  # between SIGTERM and SIGKILL when preStop used up the grace period
START_ERROR_CODE = 128  # what containerd reports for a command that cannot be executed


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the containers of one pod share."""

    pod: Manifest
    sandbox: Sandbox
    resolver: Resolver
    volumes: Volumes
    pod_ip: str
    host_ip: str
    folder: Path  # for files of termination messages
    log_folder: Path
    backoff_seconds: float
    retry_seconds: float  # after a missing Secret or ConfigMap
    changed: Callable[[], None]
    event: Callable[[str, str, str], None]


class ContainerRunner:
    """Runs one container until it is over for good; `state` tells the others how it is."""

    def __init__(
        self,
        around: Surroundings,
        container: Manifest,
        state: ContainerState,
        *,
        init: bool = False,
    ) -> None:
        self.state = state
        self._around = around
        self._container = container
        policy = str(around.pod["spec"].get("restartPolicy", "Always"))
        self._policy = "OnFailure" if init and policy == "Always" else policy
        self._init = init
        self._process: Process | None = None
        self._env: dict[str, str] = {}
        self._mounts: Sequence[Mount] = ()
        self._closing = asyncio.Event()
        self._deadline = 0.0  # of the stop, in time.monotonic()
        self._shutting_down = False
        self._log: Path | None = None
        self._background: set[asyncio.Task[None]] = set()

    def stop(self, grace_seconds: float) -> None:
        """Asks `run` to end within the grace; a second call may only shorten it."""
        deadline = time.monotonic() + grace_seconds
        first = not self._closing.is_set()
        self._deadline = deadline if first else min(self._deadline, deadline)
        self._closing.set()
        if not first and self._process is not None:
            asyncio.get_running_loop().call_later(grace_seconds, self._process.kill)

    async def run(self) -> int:
        """Until the policy wants no restart, or `stop`; the exit code of the last run."""
        backoff = Backoff(self._around.backoff_seconds)
        while not self._closing.is_set():
            try:
                ended = await self._run_once()
            except (MissingReference, ValueError) as error:  # ValueError: not text, not a quantity
                self._wait("CreateContainerConfigError", str(error))
                self._around.event("Warning", "Failed", f"Error: {error}")
                await self._pause(self._around.retry_seconds)
                continue
            self.state.ended = ended
            self.state.started = self.state.ready = False
            self._around.changed()
            over = self._policy == "Never" or (self._policy == "OnFailure" and not ended.exit_code)
            if self._closing.is_set() or over:
                break
            delay = backoff.next_delay_seconds(ended.finished_at - ended.started_at)
            await self._back_off(ended, delay)
            if not self._closing.is_set():
                self.state.restarts += 1
        return self._over()

    async def _back_off(self, ended: Ended, delay_seconds: float) -> None:
        name = self.state.name
        self.state.last, self.state.ended, self.state.started_at = ended, None, None
        if ended.reason == "StartError":
            self._wait("RunContainerError", ended.message)
            delay_seconds = max(delay_seconds, min(1.0, self._around.backoff_seconds))
        elif delay_seconds:
            where = f"{name} in pod {self._around.pod['metadata']['name']}"
            text = f"back-off {delay_seconds:g}s restarting failed container={where}"
            self._wait("CrashLoopBackOff", text)
            self._around.event(
                "Warning", "BackOff", f"Back-off restarting failed container {where}"
            )
        await self._pause(ended.finished_at + delay_seconds - time.time())

    def _over(self) -> int:
        """A container that was waiting when the pod was stopped shows its last run."""
        state = self.state
        if state.ended is None:
            state.ended, state.last = state.last or never_ran(time.time()), None
            self._around.changed()
        return state.ended.exit_code

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._closing.wait(), max(0.0, seconds))
        except TimeoutError:
            pass

    def _wait(self, reason: str, message: str) -> None:
        state = self.state
        state.ended, state.started_at = None, None
        state.waiting_reason, state.waiting_message = reason, message
        self._around.changed()

    async def _run_once(self) -> Ended:
        """One run from start to end; raises MissingReference before anything ran."""
        around, state = self._around, self.state
        self._env = await container_environment(
            around.pod, self._container, around.resolver,
            pod_ip=around.pod_ip, host_ip=around.host_ip,
        )  # fmt: skip
        argv = command_line(self._container, self._env)
        message_file = around.folder / f"{state.name}-{state.restarts}.message"
        message_file.touch()
        message_file.chmod(0o666)  # the sandbox may run the container as another user
        message_path = self._container.get("terminationMessagePath") or "/dev/termination-log"
        message_mount = Mount(path=message_path, source=message_file)
        self._mounts = [*around.volumes.mounts(self._container), message_mount]
        container_id = f"octavo://{uuid.uuid4().hex}"
        began = time.time()
        launch = around.sandbox.wrap(
            around.pod, self._container, argv, dict(self._env), self._mounts
        )
        output = os.open(self._open_log(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            process = await Process.start(launch, output)
        except StartFailed as error:
            around.event("Warning", "Failed", f"Error: {error}")
            return Ended(
                exit_code=START_ERROR_CODE, started_at=began, finished_at=time.time(),
                message=str(error), reason="StartError", container_id=container_id,
            )  # fmt: skip
        finally:
            os.close(output)
        self._process = process
        state.ended, state.started_at, state.container_id = None, began, container_id
        around.event("Normal", "Started", f"Started container {state.name}")
        code = await self._attend(process)
        return Ended(
            exit_code=code, started_at=began, finished_at=time.time(),
            message=self._termination_message(message_file, code), container_id=container_id,
        )  # fmt: skip

    async def _attend(self, process: Process) -> int:
        """Probes the process and stops it when asked; its exit code."""
        self._shutting_down = False
        tasks = [asyncio.create_task(self._probe()), asyncio.create_task(self._close_when_asked())]
        tasks[0].add_done_callback(self._tell_failed_probe)
        tasks[1].add_done_callback(self._tell_failed_stop)
        try:
            return await process.wait()
        finally:
            for task in (*tasks, *self._background):
                task.cancel()
            if not process.ended:
                process.kill()
                await process.wait()
            self._process = None

    async def _close_when_asked(self) -> None:
        await self._closing.wait()
        await self._shut_down(self._deadline - time.monotonic(), "Stopping container {}")

    async def _shut_down(self, grace_seconds: float, why: str) -> None:
        """preStop, SIGTERM, the rest of the grace, SIGKILL."""
        process = self._process
        if process is None:
            return
        deadline = time.monotonic() + grace_seconds
        if self._shutting_down:  # for a failed probe; only the end may come earlier
            if not await process.wait_for(grace_seconds):
                process.kill()
            return
        self._shutting_down = True
        around, name = self._around, self.state.name
        around.event("Normal", "Killing", why.format(name))
        hook = (self._container.get("lifecycle") or {}).get("preStop")
        rest_seconds = grace_seconds
        if hook and grace_seconds > 0:
            running = asyncio.create_task(run_hook(hook, self._target(), grace_seconds))
            ending = asyncio.create_task(process.wait())
            try:
                await asyncio.wait({running, ending}, return_when=asyncio.FIRST_COMPLETED)
                failure = running.result() if running.done() else None
            except Exception as error:  # a broken hook must not keep the process alive
                failure = f"{type(error).__name__}: {error}"
            finally:
                running.cancel()
                ending.cancel()
            if failure is not None:
                around.event("Warning", "FailedPreStopHook", f"PreStopHook failed: {failure}")
            rest_seconds = max(deadline - time.monotonic(), AFTER_HOOK_SECONDS)
        process.signal(signal.SIGTERM)
        if not await process.wait_for(rest_seconds):
            process.kill()

    async def _probe(self) -> None:
        """Startup first; then readiness gates `ready`, and a failed liveness ends the run."""
        state, around, target = self.state, self._around, self._target()
        startup = self._container.get("startupProbe")
        if startup and not self._init:
            around.changed()
            await watch(
                startup, target, state=None, stop_when=True,
                on_change=lambda passed: None if passed else self._unhealthy("startup", startup),
                on_failure=lambda text: self._failed_probe("Startup", text),
            )  # fmt: skip
        state.started = not self._init
        readiness = self._container.get("readinessProbe")
        state.ready = not (readiness or self._init)
        around.changed()
        async with asyncio.TaskGroup() as group:
            if readiness:
                group.create_task(
                    watch(
                        readiness, target, state=False, on_change=self._set_ready,
                        on_failure=lambda text: self._failed_probe("Readiness", text),
                    )
                )  # fmt: skip
            if liveness := self._container.get("livenessProbe"):
                group.create_task(
                    watch(
                        liveness, target, state=True, stop_when=False,
                        on_change=lambda _: self._unhealthy("liveness", liveness),
                        on_failure=lambda text: self._failed_probe("Liveness", text),
                    )
                )  # fmt: skip

    def _set_ready(self, ready: bool) -> None:
        self.state.ready = ready
        self._around.changed()

    def _failed_probe(self, kind: str, text: str) -> None:
        if kind == "Readiness" or not self._closing.is_set():
            self._around.event("Warning", "Unhealthy", f"{kind} probe failed: {text}")

    def _unhealthy(self, kind: str, probe: Manifest) -> None:
        """A kubelet stops liveness and startup probes once a pod is being stopped."""
        if self._closing.is_set():
            return
        grace = probe.get("terminationGracePeriodSeconds")
        why = f"Container {{}} failed {kind} probe, will be restarted"
        stop = self._shut_down(grace_seconds(self._around.pod, grace), why)
        task = asyncio.create_task(stop)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(self._tell_failed_stop)

    def _tell_failed_stop(self, task: asyncio.Task[None]) -> None:
        """A stop that went wrong is a kill, never a process that stays."""
        if not task.cancelled() and (error := task.exception()) is not None:
            text = f"stopping failed: {type(error).__name__}: {error}"
            self._around.event("Warning", "FailedKillPod", text)
            if self._process is not None:
                self._process.kill()

    def _tell_failed_probe(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._around.event("Warning", "ProbeError", f"{type(error).__name__}: {error}")

    def _target(self) -> Target:
        around = self._around

        def port(port: int | str) -> int:
            return around.sandbox.port(around.pod, port_number(self._container, port))

        return Target(host=around.pod_ip, port=port, execute=self._execute)

    async def _execute(self, command: list[str], timeout_seconds: float) -> tuple[int, str]:
        around = self._around
        launch = around.sandbox.wrap(
            around.pod, self._container, list(command), dict(self._env), self._mounts
        )
        with tempfile.TemporaryFile() as output:
            try:
                process = await Process.start(launch, output.fileno())
            except StartFailed as error:
                return START_ERROR_CODE, str(error)
            try:
                if not await process.wait_for(timeout_seconds):
                    raise TimeoutError
            finally:
                process.kill()
            output.seek(0)
            return await process.wait(), output.read(MESSAGE_BYTES).decode(errors="replace")

    def _open_log(self) -> Path:
        """A file per run, the container's name its folder, as on a node; old ones go."""
        folder = self._around.log_folder / self.state.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.state.restarts - KEPT_LOGS}.log").unlink(missing_ok=True)
        self._log = folder / f"{self.state.restarts}.log"
        return self._log

    def _termination_message(self, file: Path, code: int) -> str:
        policy = self._container.get("terminationMessagePolicy")
        try:
            message = file.read_bytes()[:MESSAGE_BYTES]
        except OSError:
            message = b""
        if not message and code and policy == "FallbackToLogsOnError" and self._log is not None:
            lines = self._log.read_bytes()[-LOG_MESSAGE_BYTES:].splitlines(keepends=True)
            message = b"".join(lines[-LOG_MESSAGE_LINES:])
        return message.decode(errors="replace")


def grace_seconds(pod: Manifest, wanted: float | None) -> float:
    """`wanted`, or the pod's terminationGracePeriodSeconds, 30 if neither says."""
    if wanted is None:
        wanted = pod["spec"].get("terminationGracePeriodSeconds")
    return 30.0 if wanted is None else float(wanted)
