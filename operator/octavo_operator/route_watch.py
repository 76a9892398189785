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

Object = dict[str, Any]

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
        self._known: dict[Place, dict[tuple[str, str], Object]] = {}
        self._asked: set[Place] = set()

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return list(self._running.values())

    def start(self, made: Mapping[str, Any]) -> None:
        """An object that there is now: watch all of its kind, if they are not watched yet."""
        kind, own = made["kind"], made["metadata"]["namespace"]
        for namespace in self._namespaces or (None,):
            place = (kind, namespace)
            self._asked.add(place)
            if namespace in (None, own):
                self._note(place, made)
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
                    if what == "OPEN":
                        self._catch_up((kind, namespace), version)
                        continue
                    version = found["metadata"]["resourceVersion"]
                    if what != "BOOKMARK":
                        self._note((kind, namespace), found, gone=what == "DELETED")
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

    def _catch_up(self, place: Place, version: str) -> None:
        """A watch that begins anew tells what there is, not what went while there was none: that
        may be any of those which were known.
        """
        if not version:
            for each in self._known.pop(place, {}).values():
                self._changed(each)

    def _note(self, place: Place, found: Mapping[str, Any], *, gone: bool = False) -> None:
        metadata = found["metadata"]
        known = self._known.setdefault(place, {})
        key = (metadata["namespace"], metadata["name"])
        if gone:
            known.pop(key, None)
        else:
            kept = {name: metadata.get(name) for name in ("namespace", "name", "labels")}
            known[key] = {"metadata": kept}
