"""The fleet is kept as the API server has it: listed, then watched, and listed again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from octavo_operator import names
from octavo_operator.kube import Kube, KubeError, KubeUnreachable
from octavo_operator.metrics_api.fleet import Fleet, Key

AGAIN_SECONDS = 2.0
"""Between two watches: each ends after minutes, and may fail at once."""

SERVICES, PODS = (names.API_VERSION, names.KIND), ("v1", "Pod")

log = logging.getLogger(__name__)


class Watches:
    """Of InferenceServices and their pods, in these namespaces, or in all."""

    def __init__(
        self,
        kube: Kube,
        fleet: Fleet,
        namespaces: tuple[str, ...],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube, self._fleet, self._clock = kube, fleet, clock
        self._places = [
            (kind, namespace) for kind in (SERVICES, PODS) for namespace in namespaces or (None,)
        ]
        self._listed: set[tuple[tuple[str, str], str | None]] = set()

    @property
    def listed(self) -> bool:
        """Whether all has been seen once; before, what there is cannot be told from what is not."""
        return len(self._listed) == len(self._places)

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.gather(*(self._keep(*place) for place in self._places))

    async def _keep(self, kind: tuple[str, str], namespace: str | None) -> None:
        where = f"each {kind[1]} of {namespace or 'all namespaces'}"
        version = ""
        while True:
            try:
                if not version:
                    version = await self._list(kind, namespace)
                async for what, live in self._kube.watch(
                    *kind, namespace, _selector(kind), version
                ):
                    version = live["metadata"]["resourceVersion"]
                    if what == "DELETED":
                        self._lost(kind, _key(live))
                    elif what != "BOOKMARK":
                        self._saw(kind, live)
            except KubeUnreachable as error:
                log.info("the watch of %s ended: %s", where, error)
            except KubeError as error:
                version = ""
                log.log(
                    logging.INFO if error.code == 410 else logging.WARNING,
                    "cannot watch %s: %s", where, error,
                )  # fmt: skip
            except Exception:
                version = ""
                log.exception("the watch of %s failed", where)
            await asyncio.sleep(AGAIN_SECONDS)

    async def _list(self, kind: tuple[str, str], namespace: str | None) -> str:
        found, version = await self._kube.snapshot(*kind, namespace, _selector(kind))
        for live in found:
            # Items of a list do not say what they are.
            self._saw(kind, {**live, "apiVersion": kind[0], "kind": kind[1]})
        keys = map(_key, found)
        if kind == PODS:
            self._fleet.keep_pods(namespace, keys)
        else:
            self._fleet.keep_services(namespace, keys)
        self._listed.add((kind, namespace))
        return version

    def _saw(self, kind: tuple[str, str], live: dict[str, Any]) -> None:
        if kind == PODS:
            self._fleet.saw_pod(live, self._clock())
        else:
            self._fleet.saw_service(live)

    def _lost(self, kind: tuple[str, str], key: Key) -> None:
        if kind == PODS:
            self._fleet.lost_pod(key)
        else:
            self._fleet.lost_service(key)


def _selector(kind: tuple[str, str]) -> str:
    return names.SERVICE_LABEL if kind == PODS else ""


def _key(live: dict[str, Any]) -> Key:
    return live["metadata"]["namespace"], live["metadata"]["name"]
