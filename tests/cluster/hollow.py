"""Hollow pods: no process, only the status a kubelet would write, by a script."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from octavo_operator.local.backoff import Backoff
from octavo_operator.local.statuses import ContainerState, Ended, PodState, pod_status

from .kube_api import Object

_addresses = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What a hollow pod does. Times in seconds; `exits_after` None: it runs until it is stopped."""

    start_after: float = 0.0
    ready_after: float | None = 0.0  # None: never ready
    exits_after: float | None = None
    exit_code: int = 1
    reason: str = ""  # "OOMKilled", else Error or Completed by the exit code
    message: str = ""  # the termination message
    stop_after: float = 0.0  # how long it takes to end once it is told to
    address: str | None = None  # its pod IP, for a stub server of the test; else one nobody answers


CRASH = Behaviour(exits_after=0.0, message="it broke")
OUT_OF_MEMORY = Behaviour(exits_after=0.0, exit_code=137, reason="OOMKilled")
NEVER_READY = Behaviour(ready_after=None)

Script = Callable[[Object], Behaviour]
"""Pod -> behaviour, asked at each start of its containers, so that a script can change its mind."""


def steady(pod: Object) -> Behaviour:
    """Starts, is ready at once and stays so."""
    return Behaviour()


class HollowRunner:
    """The PodRunner of a hollow pod: the same `run`, `stop` and `status`."""

    def __init__(
        self,
        pod: Object,
        script: Script,
        *,
        on_status: Callable[[Object], None],
        on_event: Callable[[str, str, str], None],
        host_ip: str,
        backoff_seconds: float,
    ) -> None:
        self._script = script
        self._on_status = on_status
        self._on_event = on_event
        self._backoff = Backoff(backoff_seconds)
        self._pod = pod
        self._closing = asyncio.Event()
        self._over = asyncio.Event()
        self.status: Object = dict(pod.get("status") or {})
        self._state = PodState(
            pod=pod,
            start_time=time.time(),
            host_ip=host_ip,
            containers=[
                ContainerState(
                    name=container["name"],
                    image=container["image"],
                    waiting_reason="ContainerCreating",
                )
                for container in pod["spec"]["containers"]
            ],
        )

    async def run(self) -> None:
        """Until the pod is stopped or its restart policy lets it end."""
        policy = self._pod["spec"].get("restartPolicy", "Always")
        try:
            while not self._closing.is_set():
                behaviour = self._script(self._pod)
                if not self._state.pod_ip:
                    self._state.pod_ip = behaviour.address or _next_address()
                    self._changed()
                ended = await self._run_once(behaviour)
                if ended is None:
                    break
                if policy == "Never" or (policy == "OnFailure" and ended.exit_code == 0):
                    break
                await self._back_off(ended)
        finally:
            self._state.closing = True
            self._changed()
            self._over.set()

    async def stop(self, grace_seconds: float | None = None) -> None:
        self._closing.set()
        await self._over.wait()

    async def _run_once(self, behaviour: Behaviour) -> Ended | None:
        """None if it was stopped before or while it ran."""
        if await self._pause(behaviour.start_after):
            self._end(time.time(), 137, "", "")
            return None
        started = time.time()
        for container in self._state.containers:
            container.started_at, container.started = started, True
            container.ready = behaviour.ready_after == 0 and behaviour.exits_after != 0
        self._changed()
        ready, exits = behaviour.ready_after, behaviour.exits_after
        becomes_ready = ready and (exits is None or ready < exits)
        if becomes_ready and not await self._pause(ready):
            for container in self._state.containers:
                container.ready = True
            self._changed()
            exits = None if exits is None or ready is None else exits - ready
        if await self._pause(exits):
            await asyncio.sleep(behaviour.stop_after)
            self._end(started, 0, "", "")
            return None
        return self._end(started, behaviour.exit_code, behaviour.reason, behaviour.message)

    def _end(self, started: float, code: int, reason: str, message: str) -> Ended:
        ended = Ended(
            exit_code=code, started_at=started, finished_at=time.time(), reason=reason,
            message=message,
        )  # fmt: skip
        for container in self._state.containers:
            container.ended, container.ready, container.started = ended, False, False
        self._changed()
        return ended

    async def _back_off(self, ended: Ended) -> None:
        delay_seconds = self._backoff.next_delay_seconds(ended.finished_at - ended.started_at)
        for container in self._state.containers:
            container.last, container.ended, container.started_at = ended, None, None
            container.waiting_reason = "CrashLoopBackOff"
        if delay_seconds:
            self._on_event("Warning", "BackOff", "Back-off restarting failed container")
            self._changed()
        await self._pause(delay_seconds)
        for container in self._state.containers:
            container.restarts += 1

    async def _pause(self, seconds: float | None) -> bool:
        """True if the pod was told to stop meanwhile; None: waits for just that."""
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            pass
        return self._closing.is_set()

    def _changed(self) -> None:
        status = pod_status(self._state, self.status, time.time())
        if status != self.status:
            self.status = status
            self._on_status(status)


def _next_address() -> str:
    """From 198.18.0.0/15, which is for tests: nothing answers there."""
    number = next(_addresses) % (1 << 17)
    return f"198.{18 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
