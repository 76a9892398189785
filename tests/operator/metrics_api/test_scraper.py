"""Every pod is asked once a second, whether or not others answer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tests.operator.metrics_api.test_fleet import container, pod
from tests.operator.test_pod_load import ANSWER

from octavo_operator.metrics_api.fleet import Fleet
from octavo_operator.metrics_api.scraper import Scraper


class Pods:
    """Who answers by address, hangs, breaks or says nonsense."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.hanging = 0

    async def get(self, ip: str, port: int, path: str) -> dict[str, Any] | None:
        assert (port, path) == (8000, "/load")
        self.asked.append(ip)
        answer = self.answers[ip]
        if answer == "hangs":
            self.hanging += 1
            try:
                await asyncio.sleep(3600)
            finally:
                self.hanging -= 1
        if isinstance(answer, Exception):
            raise answer
        found: dict[str, Any] | None = answer
        return found


async def scrape(fleet: Fleet, pods: Any, until: Any) -> None:
    scraper = Scraper(fleet, pods)
    task = asyncio.ensure_future(scraper.run())
    deadline = time.monotonic() + 20
    while not until():
        assert time.monotonic() < deadline and not task.done()
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_one_that_hangs_or_breaks_holds_nobody_up() -> None:
    pods = Pods(good=ANSWER, hung="hangs", odd={"a": 1}, gone=None, bad=RuntimeError("defect"))
    fleet = Fleet()
    for ip in pods.answers:
        fleet.saw_pod(pod(ip, status_podIP=ip), time.monotonic())
    fleet.saw_pod(pod("down", status_containerStatuses=container(0, "waiting")), 0.0)
    begun = time.monotonic()
    await scrape(fleet, pods, lambda: pods.asked.count("good") == 3)
    assert 1.5 < time.monotonic() - begun < 10
    assert pods.asked.count("hung") == 1  # never twice at once
    assert pods.asked.count("bad") >= 2 and pods.asked.count("gone") >= 2
    heard = {each.ip for each in fleet.pods() if each.track.last is not None}
    assert heard == {"good"}
    for _ in range(5):
        await asyncio.sleep(0)
    assert pods.hanging == 0


async def test_the_age_is_counted_from_the_question() -> None:
    pods, fleet = Pods(good=ANSWER), Fleet()
    fleet.saw_pod(pod(status_podIP="good"), 0.0)
    begun = time.monotonic()
    await scrape(fleet, pods, lambda: next(fleet.pods()).track.last is not None)
    last = next(fleet.pods()).track.last
    assert last is not None and begun <= last.at <= time.monotonic()
