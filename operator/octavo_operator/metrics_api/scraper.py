"""Every pod is asked for its load once a second, whether or not others answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from octavo_operator import names
from octavo_operator.metrics_api.fleet import Fleet, Pod
from octavo_operator.pod_http import PodHttp
from octavo_operator.pod_load import parse_load

EVERY_SECONDS = 1.0

PARTS = 10
"""A round is spread over its second: a thousand connections at once would wait for each other."""

log = logging.getLogger(__name__)


class Scraper:
    def __init__(
        self, fleet: Fleet, http: PodHttp, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fleet, self._http, self._clock = fleet, http, clock
        self._asking: dict[str, asyncio.Task[None]] = {}  # by run: no pod is asked twice at once
        self.round_at = clock()
        """When the last round began."""

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self.round_at = begun = self._clock()
                pods = [pod for pod in self._fleet.pods() if pod.asked]
                for part in range(PARTS):
                    for pod in pods[part::PARTS]:
                        self._ask(pod)
                    # Late (a busy process), it skips what it missed.
                    due = begun + EVERY_SECONDS * (part + 1) / PARTS
                    await asyncio.sleep(max(0.0, due - self._clock()))
        finally:
            for task in self._asking.values():
                task.cancel()

    def _ask(self, pod: Pod) -> None:
        if pod.run in self._asking:
            return
        task = asyncio.ensure_future(self._look(pod))
        self._asking[pod.run] = task
        task.add_done_callback(lambda _: self._asking.pop(pod.run, None))

    async def _look(self, pod: Pod) -> None:
        at = self._clock()
        try:
            load = parse_load(await self._http.get(pod.ip, names.PORT, "/load"))
        except Exception:  # a defect: the other pods matter all the same
            log.exception("%s/%s: its load", *pod.key)
            return
        if load is not None:
            # The same track in whatever has been seen of that run since.
            pod.track.heard(load, at)
