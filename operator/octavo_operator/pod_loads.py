"""Ready pods are asked for their load beside the passes, and the sums written into the status.

Never by a pass and never causing one: a busy service would keep the operator busy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from octavo_operator import names
from octavo_operator.downloads import describe, is_fetching, parse_progress
from octavo_operator.kube import Kube, KubeError, KubeUnreachable
from octavo_operator.pod_http import PodHttp
from octavo_operator.pod_load import PodLoad, parse_load, report
from octavo_operator.queue import Key

EVERY_SECONDS = 15.0

_DOWNLOADS = 8

AT_ONCE = 32
"""Pods asked, and statuses written, at a time."""

log = logging.getLogger(__name__)


class PodLoads:
    def __init__(self, kube: Kube, http: PodHttp) -> None:
        self._kube, self._http = kube, http
        self._services: dict[Key, Mapping[str, Any]] = {}
        self._pods: dict[Key, tuple[str, ...]] = {}
        self._few = asyncio.Semaphore(AT_ONCE)

    def watch(self, live: Mapping[str, Any], pods: list[dict[str, Any]]) -> None:
        """From a pass: the InferenceService, and its pods as the API server has them."""
        metadata = live["metadata"]
        key = (metadata["namespace"], metadata["name"])
        self._services[key] = {
            "apiVersion": live["apiVersion"],
            "kind": live["kind"],
            "metadata": {field: metadata[field] for field in ("namespace", "name", "uid")},
            "status": live.get("status") or {},
        }
        self._pods[key] = tuple(ip for pod in pods if (ip := serving_ip(pod)))

    def forget(self, key: Key) -> None:
        self._services.pop(key, None)
        self._pods.pop(key, None)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            keys = list(self._pods)
            found = await asyncio.gather(*map(self._look, keys), return_exceptions=True)
            for key, error in zip(keys, found, strict=True):
                if isinstance(error, Exception):  # a defect: the others' loads matter all the same
                    log.error("%s/%s: its load: %s", *key, error, exc_info=error)

    async def ask(self, pods: list[dict[str, Any]]) -> dict[str, PodLoad]:
        """Now, by the pods' names; those that do not answer are missing."""
        found = await asyncio.gather(*(self._ask(serving_ip(pod)) for pod in pods))
        return {
            pod["metadata"]["name"]: load
            for pod, load in zip(pods, found, strict=True)
            if load is not None
        }

    async def describe_downloads(self, pods: list[dict[str, Any]]) -> str:
        """Of the pods that fetch the model, now: at most a few are asked, for 2 s at most."""
        asked = [each for pod in pods if is_fetching(pod) and (each := _ip(pod))][:_DOWNLOADS]
        answers = await asyncio.gather(
            *(self._http.get(ip, names.PORT, "/progress") for ip in asked)
        )
        return describe(map(parse_progress, answers))

    async def _ask(self, ip: str) -> PodLoad | None:
        if not ip:
            return None
        async with self._few:
            return parse_load(await self._http.get(ip, names.PORT, "/load"))

    async def _look(self, key: Key) -> None:
        asked = self._pods.get(key, ())  # a round is long: it may be forgotten by now
        loads = await asyncio.gather(*(self._ask(ip) for ip in asked))
        told = report([each for each in loads if each is not None])
        live = self._services.get(key)
        if told is None or live is None or self._pods.get(key) != asked:
            return
        if live["status"].get("reported") == told:
            return
        try:
            async with self._few:
                await self._kube.patch_status(dict(live), {"reported": told})
        except (KubeError, KubeUnreachable) as error:
            log.debug("%s/%s: its load was not written: %s", *key, error)
            if isinstance(error, KubeError) and error.code in (404, 409):
                self.forget(key)  # gone, or another of its name: a pass tells of that
            return
        self._services[key] = {**live, "status": {**live["status"], "reported": told}}


def serving_ip(pod: Mapping[str, Any]) -> str:
    """The address of a pod that is ready and not being deleted; "" of others."""
    status = pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp"):
        return ""
    ready = any(
        each.get("type") == "Ready" and each.get("status") == "True"
        for each in status.get("conditions") or ()
    )
    return _ip(pod) if ready else ""


def _ip(pod: Mapping[str, Any]) -> str:
    return str((pod.get("status") or {}).get("podIP") or "")
