"""A metrics API that is gone must not hang the cluster: its APIServices are withdrawn.

While an APIService leads nowhere, no namespace can be deleted. Once `octavo metrics-api` answers
again, it registers itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from octavo_operator import names
from octavo_operator.kube import Kube, KubeError, KubeUnreachable
from octavo_operator.metrics_api.questions import GROUP, VERSIONS
from octavo_operator.metrics_api.registration import API_VERSION, KIND

NAMES = tuple(f"{each}.{GROUP}" for each in sorted(VERSIONS))

PATIENCE_SECONDS = 60.0
"""How long one of ours may lead nowhere. A rollout of the metrics API takes none of it."""

EVERY_SECONDS = 15.0

log = logging.getLogger(__name__)


class Registrations:
    def __init__(self, kube: Kube, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube, self._clock = kube, clock
        self._dead: dict[str, float] = {}  # by uid: since when it leads nowhere
        self._told = ""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
                self._told = ""
            except (KubeError, KubeUnreachable) as error:
                # An operator of some namespaces has no right on them: once is enough.
                if (text := str(error)) != self._told:
                    log.info("APIServices are not looked after: %s", text)
                self._told = text
            except Exception:
                log.exception("looking after APIServices failed")
            await asyncio.sleep(EVERY_SECONDS)

    async def look(self) -> None:
        """KubeError, KubeUnreachable."""
        now, dead = self._clock(), {}
        for live in await find_providers(self._kube):
            if not is_ours(live) or not leads_nowhere(live):
                continue
            name, uid = live["metadata"]["name"], live["metadata"]["uid"]
            dead[uid] = self._dead.get(uid, now)
            if now - dead[uid] < PATIENCE_SECONDS:
                continue
            await self._kube.delete({**live, "apiVersion": API_VERSION, "kind": KIND})
            del dead[uid]
            log.warning("withdrew the APIService %s: the metrics API does not answer", name)
        self._dead = dead


async def find_providers(kube: Kube) -> list[dict[str, Any]]:
    """The APIServices of custom metrics, whoever's they are. KubeError, KubeUnreachable."""
    found = [await kube.get(API_VERSION, KIND, None, name) for name in NAMES]
    return [each for each in found if each is not None]


def is_ours(live: Mapping[str, Any]) -> bool:
    labels = live["metadata"].get("labels") or {}
    return (labels.get("app.kubernetes.io/name"), labels.get(names.MANAGED_BY_LABEL)) == (
        "octavo", "octavo",
    )  # fmt: skip


def leads_nowhere(live: Mapping[str, Any]) -> bool:
    return any(
        (each.get("type"), each.get("status")) == ("Available", "False")
        for each in (live.get("status") or {}).get("conditions") or ()
    )
