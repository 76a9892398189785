"""One pod as local processes: what a kubelet does for it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from octavo_operator.local.container import ContainerRunner, Surroundings, grace_seconds
from octavo_operator.local.resolver import MissingReference, Resolver
from octavo_operator.local.sandbox import Manifest, Sandbox
from octavo_operator.local.statuses import ContainerState, PodState, never_ran, pod_status
from octavo_operator.local.supported import unsupported_fields
from octavo_operator.local.volumes import Volumes


class PodRunner:
    """Runs a pod once: `run` until it ends, `stop` to end it.

    `on_status(status)` gets the whole PodStatus at each change, `on_event(type, reason, message)`
    what a kubelet would record. Logs: `log_folder/CONTAINER/RESTARTS.log`. A pod with a field that
    the runner does not honour ends Failed with reason UnsupportedField. If the task of `run` is
    cancelled, or this process dies, all processes of the pod are killed. Volumes and messages lie
    in a folder of its own below `scratch_folder` (None: the system's) until the pod is over.
    """

    def __init__(
        self,
        pod: Manifest,
        sandbox: Sandbox,
        *,
        resolve: Resolver,
        on_status: Callable[[Manifest], None],
        on_event: Callable[[str, str, str], None],
        log_folder: Path,
        host_ip: str = "127.0.0.1",
        backoff_seconds: float = 10.0,
        retry_seconds: float = 2.0,
        scratch_folder: Path | None = None,
    ) -> None:
        self._pod = pod
        self._sandbox = sandbox
        self._resolver = resolve
        self._on_status = on_status
        self._on_event = on_event
        self._log_folder = log_folder
        self._backoff_seconds = backoff_seconds
        self._retry_seconds = retry_seconds
        self._scratch_folder = scratch_folder
        spec = pod["spec"]
        inits = spec.get("initContainers") or []
        reason = "PodInitializing" if inits else "ContainerCreating"
        self._state = PodState(
            pod=pod,
            start_time=time.time(),
            host_ip=host_ip,
            init=[_new_state(c, "PodInitializing") for c in inits],
            containers=[_new_state(c, reason) for c in spec["containers"]],
        )
        self._folder: Path | None = None
        self._containers: list[ContainerRunner] = []
        self._grace: float | None = None  # of the stop; None until asked
        self._closing = asyncio.Event()
        self._over = asyncio.Event()
        self._running = False
        self.status: Manifest = dict(pod.get("status") or {})

    async def run(self) -> None:
        """Returns when the pod is over: stopped, refused, or ended by its restart policy."""
        self._running = True
        try:
            bad = self._refused()
            if bad:
                message = f"not supported on this node: {', '.join(bad)}"
                self._on_event("Warning", "UnsupportedField", message)
                self._state.failure = ("UnsupportedField", message)
                return
            self._folder = Path(tempfile.mkdtemp(prefix="octavo-pod-", dir=self._scratch_folder))
            await self._live(self._folder)
        finally:
            if self._closing.is_set():
                self._mark_never_run()
            self._state.closing = True
            self._changed()
            self._over.set()

    async def stop(self, grace_seconds_wanted: float | None = None) -> None:
        """Ends the pod: preStop, SIGTERM, grace (None: the pod's own), SIGKILL; returns when over.

        May be called again with a shorter grace.
        """
        grace = grace_seconds(self._pod, grace_seconds_wanted)
        self._grace = grace if self._grace is None else min(grace, self._grace)
        self._state.closing = True
        self._closing.set()
        for container in self._containers:
            container.stop(grace)
        if self._running:
            await self._over.wait()

    def _refused(self) -> list[str]:
        volumes = self._pod["spec"].get("volumes") or ()
        given = [
            volume["name"]
            for volume in volumes
            if self._sandbox.volume_folder(self._pod, volume) is not None
        ]
        return unsupported_fields(self._pod, given)

    async def _live(self, folder: Path) -> None:
        volumes = Volumes(folder / "volumes")
        self._changed()
        try:
            if not await self._prepare(volumes) or not await self._initialize(volumes, folder):
                return
            for state in self._state.containers:
                state.waiting_reason = "ContainerCreating"
            runners = [
                ContainerRunner(self._surroundings(volumes, folder), spec, state)
                for spec, state in zip(
                    self._pod["spec"]["containers"], self._state.containers, strict=True
                )
            ]
            self._add(*runners)
            async with asyncio.TaskGroup() as group:
                for runner in runners:
                    group.create_task(runner.run())
        finally:
            await self._sandbox.destroy(self._pod)
            volumes.remove()
            shutil.rmtree(folder, ignore_errors=True)

    async def _prepare(self, volumes: Volumes) -> bool:
        """Sandbox and volumes, tried until they are there; False if the pod is stopped first."""
        while not self._closing.is_set():
            try:
                if not self._state.pod_ip:
                    self._state.pod_ip = await self._sandbox.create(self._pod)
                    self._changed()
                await volumes.prepare(
                    self._pod, self._resolver, self._sandbox,
                    pod_ip=self._state.pod_ip, host_ip=self._state.host_ip,
                )  # fmt: skip
                return True
            except (MissingReference, ValueError) as error:
                self._on_event("Warning", "FailedMount", f"MountVolume.SetUp failed: {error}")
            except OSError as error:
                reason = "FailedMount" if self._state.pod_ip else "FailedCreatePodSandBox"
                self._on_event("Warning", reason, str(error))
            await self._pause(self._retry_seconds)
        return False

    async def _initialize(self, volumes: Volumes, folder: Path) -> bool:
        """Init containers in order; False if one failed for good or the pod is stopped."""
        inits = self._pod["spec"].get("initContainers") or ()
        for spec, state in zip(inits, self._state.init, strict=True):
            around = self._surroundings(volumes, folder)
            runner = ContainerRunner(around, spec, state, init=True)
            self._add(runner)
            if await runner.run() or self._closing.is_set():
                return False
        return not self._closing.is_set()

    def _add(self, *runners: ContainerRunner) -> None:
        self._containers = list(runners)
        if self._grace is not None:
            for runner in runners:
                runner.stop(self._grace)

    def _surroundings(self, volumes: Volumes, folder: Path) -> Surroundings:
        return Surroundings(
            pod=self._pod,
            sandbox=self._sandbox,
            resolver=self._resolver,
            volumes=volumes,
            pod_ip=self._state.pod_ip,
            host_ip=self._state.host_ip,
            folder=folder,
            log_folder=self._log_folder,
            backoff_seconds=self._backoff_seconds,
            retry_seconds=self._retry_seconds,
            changed=self._changed,
            event=self._on_event,
        )

    def _mark_never_run(self) -> None:
        """A stopped pod has no waiting containers, so that its phase is a final one."""
        now = time.time()
        for state in (*self._state.init, *self._state.containers):
            if state.ended is None:
                state.ended = state.last or never_ran(now)
                state.started_at = state.last = None

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            pass

    def _changed(self) -> None:
        status = pod_status(self._state, self.status, time.time())
        if status != self.status:
            self.status = status
            self._on_status(status)


def _new_state(container: Manifest, reason: str) -> ContainerState:
    return ContainerState(
        name=container["name"], image=container.get("image", ""), waiting_reason=reason
    )
