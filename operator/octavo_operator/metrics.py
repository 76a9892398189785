"""The operator's own metrics, in Prometheus' text format.

The names are API: dashboards and alerts match on them.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter as Tally
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from octavo_operator import conditions
from octavo_operator.queue import Key, Queue

_PASS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)
"""A pass is a handful of requests of some 10 ms each; 120 s end it."""

STATUSES = ("True", "False", "Unknown", conditions.SUSPENDED)
"""A suspended service is not ready, but as its owner wants it: nobody is to be woken for it."""


class Metrics:
    """Of one process, with a registry of its own."""

    def __init__(self, queue: Queue) -> None:
        self.registry = CollectorRegistry()
        self._passes = Counter(
            "octavo_operator_passes",
            "Passes over an InferenceService, by how they ended.",
            ["result"],
            registry=self.registry,
        )
        for result in ("done", "failed"):
            self._passes.labels(result)
        self._pass_seconds = Histogram(
            "octavo_operator_pass_seconds",
            "How long a pass took.",
            buckets=_PASS_SECONDS,
            registry=self.registry,
        )
        self._requests = Counter(
            "octavo_operator_api_requests",
            "Requests to the API server, by method and HTTP status (0: no answer). No watches.",
            ["method", "code"],
            registry=self.registry,
        )
        for name, what, read in (
            ("queue_depth", "InferenceServices that wait for a pass.", lambda: float(len(queue))),
            ("queue_overdue_seconds", "How long the oldest due one waits.", queue.overdue_seconds),
        ):
            gauge = Gauge(f"octavo_operator_{name}", what, registry=self.registry)
            gauge.set_function(read)
        self._leader = Gauge(
            "octavo_operator_leader",
            "1 while this process does the passes; 0 on standby.",
            registry=self.registry,
        )
        self._services = _Services()
        self.registry.register(self._services)

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Around a pass."""
        began = time.monotonic()
        result = "failed"
        try:
            yield
            result = "done"
        finally:
            self._pass_seconds.observe(time.monotonic() - began)
            self._passes.labels(result).inc()

    def saw_request(self, method: str, code: int) -> None:
        self._requests.labels(method, str(code)).inc()

    def saw_service(self, key: Key, status: Mapping[str, Any]) -> None:
        """An InferenceService as a watch has it."""
        found = [each for each in status.get("conditions") or () if each.get("type") == "Ready"]
        ready = str(found[0]["status"]) if found else "Unknown"
        if found and found[0].get("reason") == conditions.SUSPENDED:
            ready = conditions.SUSPENDED
        self._services.ready[key] = ready

    def forgot_service(self, key: Key) -> None:
        self._services.ready.pop(key, None)

    def listed_services(self, namespace: str | None, keys: Collection[Key]) -> None:
        """All there are (of one namespace): a watch that was cut may have missed a deletion."""
        for key in set(self._services.ready) - set(keys):
            if namespace in (None, key[0]):
                self.forgot_service(key)

    def leads(self, leads: bool) -> None:
        self._leader.set(leads)

    async def answer(self, _: web.Request) -> web.Response:
        """A scrape."""
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=generate_latest(self.registry), headers=headers)


class _Services(Collector):
    """Counted when asked: the watch says what each is, not how many there are."""

    def __init__(self) -> None:
        self.ready: dict[Key, str] = {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "octavo_operator_services",
            f"InferenceServices by the status of their condition {conditions.READY}, or Suspended.",
            labels=["ready"],
        )
        tally = Tally(self.ready.values())
        for status in STATUSES:
            family.add_metric([status], tally[status])
        yield family
