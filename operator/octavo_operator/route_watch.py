"""Watches of HTTPRoutes and InferencePools, from the first that was made on.

Not Kopf's: those are begun at the operator's start, and end it where a CRD or a right is missing.
One of these just ends, and the next pass that makes such an object begins it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from octavo_operator import names
from octavo_operator.kube import Kube, KubeError, KubeUnreachable
from octavo_operator.render import ROUTES

AGAIN_SECONDS = 5.0
"""Between two attempts of a watch that failed."""

GONE = 410

log = logging.getLogger(__name__)

Place = tuple[str, str | None]
"""A kind, and the namespace that is looked at, None for all."""


class RouteWatch:
    """`changed` hears of each object of ours that came, changed or went."""

    def __init__(
        self,
        kube: Kube,
        namespaces: tuple[str, ...],
        changed: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._kube, self._namespaces, self._changed = kube, namespaces, changed
        self._running: dict[Place, asyncio.Task[None]] = {}
        self._asked: set[Place] = set()

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return list(self._running.values())

    def start(self, kind: str) -> None:
        """There are objects of this kind: watch them, if they are not watched yet."""
        for namespace in self._namespaces or (None,):
            place = (kind, namespace)
            self._asked.add(place)
            task = self._running.get(place)
            if task is None or task.done():
                self._running[place] = asyncio.ensure_future(self._watch(*place))

    async def _watch(self, kind: str, namespace: str | None) -> None:
        """Until the API or the right for it is gone."""
        where = f"{kind} of {namespace or 'all namespaces'}"
        version = ""
        while True:
            try:
                async for what, found in self._kube.watch(
                    ROUTES[kind], kind, namespace, names.SERVICE_LABEL, version
                ):
                    version = found["metadata"]["resourceVersion"]
                    if what != "BOOKMARK":
                        self._changed(found)
            except KubeError as error:
                version = ""
                if error.code in (403, 404):
                    log.warning("cannot watch each %s: %s", where, error)
                    self._asked.discard((kind, namespace))
                    await asyncio.sleep(AGAIN_SECONDS)  # not in every pass
                    if (kind, namespace) in self._asked:
                        continue
                    return
                if error.code != GONE:
                    log.warning("the watch of each %s failed: %s", where, error)
            except KubeUnreachable as error:
                log.info("the watch of each %s ended: %s", where, error)
            except Exception:
                version = ""
                log.exception("the watch of each %s failed", where)
            await asyncio.sleep(AGAIN_SECONDS)
