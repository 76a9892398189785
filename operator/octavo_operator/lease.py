"""Which of several operators works: the holder of one Lease (coordination.k8s.io/v1).

As client-go does it: nobody compares clocks with anybody. Another's lease has run out when its
record has not changed for its duration, by the observer's own monotonic clock; a leader counts from
before it sent its last good renewal, so that it stops before anyone else may start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from octavo_operator.kube import Kube, KubeError, KubeUnreachable

API_VERSION = "coordination.k8s.io/v1"

DURATION_SECONDS = 15
"""How long the others wait for a leader that says nothing."""

RENEW_SECONDS = 10.0
"""A leader gives up after this long without a renewal: 5 s are left to stop what it does."""

RETRY_SECONDS = 2.0

log = logging.getLogger(__name__)


class LeadershipLost(Exception):
    """Stop at once: another operator leads already, or may soon."""


class Lease:
    """One candidate. `identity` is unique for the process; `clock` gives seconds, monotonic."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        name: str,
        identity: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._seen: dict[str, Any] | None = None
        self._seen_at = 0.0
        self._renewed_at = 0.0
        self.holder = ""
        """Who holds it, as last seen; "" for nobody."""

    async def attempt(self) -> bool:
        """Takes the lease or renews it; False if another has it or was quicker.

        KubeError and KubeUnreachable if that cannot be known.
        """
        started = self._clock()
        live = await self._kube.get(API_VERSION, "Lease", self._namespace, self._name)
        spec = (live or {}).get("spec") or {}
        if spec != self._seen:
            self._seen, self._seen_at = spec, self._clock()
        self.holder = spec.get("holderIdentity") or ""
        if self.holder not in ("", self._identity):
            duration = spec.get("leaseDurationSeconds") or DURATION_SECONDS
            if self._clock() < self._seen_at + duration:
                return False
        try:
            await self._write(live, spec, self._identity)
        except KubeError as error:
            if error.code == 409:
                return False
            raise
        self.holder = self._identity
        self._renewed_at = started
        return True

    async def acquire(self, stands_by: Callable[[], None] = lambda: None) -> None:
        """Returns when this process leads, however long that takes; meanwhile `stands_by` is called
        whenever another is seen to lead.
        """
        told = None
        while True:
            try:
                async with asyncio.timeout(RENEW_SECONDS):
                    if await self.attempt():
                        log.info("leading as %s", self._identity)
                        return
                stands_by()
                if self.holder != told:
                    told = self.holder
                    log.info("standing by; %s leads", told or "nobody yet")
            except (KubeError, KubeUnreachable, TimeoutError) as error:
                log.warning("cannot ask for the lease: %s", error or "no answer in time")
            await asyncio.sleep(RETRY_SECONDS)

    async def keep(self) -> None:
        """Renews until cancelled; LeadershipLost once it cannot."""
        while True:
            await asyncio.sleep(min(RETRY_SECONDS, max(0.0, self._left_seconds())))
            left = self._left_seconds()
            if left <= 0:
                raise LeadershipLost(f"the lease was not renewed for {RENEW_SECONDS:.0f} s")
            try:
                async with asyncio.timeout(left):
                    renewed = await self.attempt()
            except (KubeError, KubeUnreachable, TimeoutError) as error:
                log.warning("cannot renew the lease: %s", error or "no answer in time")
                continue
            if not renewed and self.holder not in ("", self._identity):
                raise LeadershipLost(f"{self.holder} leads now")

    def _left_seconds(self) -> float:
        return self._renewed_at + RENEW_SECONDS - self._clock()

    async def release(self) -> None:
        """Lets the next one lead at its next attempt. A failure costs it the lease's duration."""
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                live = await self._kube.get(API_VERSION, "Lease", self._namespace, self._name)
                spec = (live or {}).get("spec") or {}
                if live is not None and spec.get("holderIdentity") == self._identity:
                    await self._write(live, spec, "")
        except (KubeError, KubeUnreachable, TimeoutError) as error:
            log.warning("the lease was not released: %s", error or "no answer in time")

    async def _write(self, live: dict[str, Any] | None, spec: dict[str, Any], holder: str) -> None:
        """With the resourceVersion that was read: of two writers one gets 409."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        changes = holder != (spec.get("holderIdentity") or "")
        wanted = {
            "holderIdentity": holder,
            "leaseDurationSeconds": DURATION_SECONDS,
            "renewTime": now,
            "acquireTime": now if changes else spec.get("acquireTime", now),
            "leaseTransitions": spec.get("leaseTransitions", 0) + (changes and holder != ""),
        }
        manifest = {"apiVersion": API_VERSION, "kind": "Lease", "spec": wanted}
        if live is None:
            metadata = {"name": self._name, "namespace": self._namespace}
            await self._kube.create({**manifest, "metadata": metadata})
        else:
            await self._kube.replace({**manifest, "metadata": live["metadata"]})


async def lead(
    lease: Lease,
    serve: Callable[[], Coroutine[None, None, None]],
    stopped: asyncio.Event,
    stands_by: Callable[[], None],
) -> None:
    """`serve()` once this process leads, until it ends or `stopped`; and release the lease behind
    it.

    LeadershipLost where the lead goes to another: `serve` was cancelled, and ends before that one
    can start.
    """
    acquiring = asyncio.ensure_future(lease.acquire(stands_by))
    await asyncio.wait(
        {acquiring, stopping := asyncio.ensure_future(stopped.wait())},
        return_when=asyncio.FIRST_COMPLETED,
    )
    if stopped.is_set():  # in the same tick, too
        acquiring.cancel()
        await asyncio.wait({acquiring})
        await lease.release()  # it may have come with the last answer
        return
    await acquiring
    keeping = asyncio.ensure_future(lease.keep())
    serving = asyncio.ensure_future(until(stopped, serve()))
    try:
        await asyncio.wait({keeping, serving}, return_when=asyncio.FIRST_COMPLETED)
        if keeping.done():
            serving.cancel()
            await asyncio.wait({serving}, timeout=DURATION_SECONDS - RENEW_SECONDS - 1)
            await keeping
        await serving
    finally:
        lost = keeping.done()
        for task in (keeping, serving, stopping):
            task.cancel()
        await asyncio.wait({keeping, serving}, timeout=RETRY_SECONDS)
        if not lost:
            await lease.release()


async def until(stopped: asyncio.Event, work: Coroutine[None, None, None]) -> None:
    """Does `work`; cancelled once `stopped`, it ends, and that is no error."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stopped.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.wait({working, stopping})
