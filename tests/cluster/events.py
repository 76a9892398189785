"""Kubernetes events about one object, in order, equal ones counted instead of repeated."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import aiohttp

from .kube_api import ApiError, KubeApi, Object, path_of

CLOSE_SECONDS = 2.0


class EventRecorder:
    """`record` never blocks; a task writes. `close` writes what is left."""

    def __init__(self, api: KubeApi, about: Object, component: str, host: str) -> None:
        self._api = api
        self._about = about
        self._component = component
        self._host = host
        self._queue: asyncio.Queue[tuple[str, str, str] | None] = asyncio.Queue()
        self._written: dict[tuple[str, str, str], Object] = {}
        self._task = asyncio.create_task(self._write_all())

    def record(self, kind: str, reason: str, message: str) -> None:
        """`kind` is Normal or Warning."""
        self._queue.put_nowait((kind, reason, message))

    async def close(self) -> None:
        self._queue.put_nowait(None)
        _, pending = await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
        for task in pending:
            task.cancel()

    async def _write_all(self) -> None:
        while (event := await self._queue.get()) is not None:
            try:
                await self._write(event)
            except (ApiError, aiohttp.ClientError, TimeoutError):
                continue  # events are told once, best effort; their namespace may be going away

    async def _write(self, event: tuple[str, str, str]) -> None:
        kind, reason, message = event
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        meta = self._about["metadata"]
        before = self._written.get(event)
        if before is not None:
            before["count"] += 1
            there = before["metadata"]
            path = path_of("v1", "Event", there["namespace"], there["name"])
            await self._api.patch(path, {"count": before["count"], "lastTimestamp": now})
            return
        namespace = meta.get("namespace") or "default"
        body: Object = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{meta['name']}.", "namespace": namespace},
            "involvedObject": {
                "apiVersion": self._about.get("apiVersion", "v1"),
                "kind": self._about.get("kind", "Pod"),
                "name": meta["name"],
                "namespace": meta.get("namespace", ""),
                "uid": meta["uid"],
            },
            "type": kind,
            "reason": reason,
            "message": message[:1024],
            "source": {"component": self._component, "host": self._host},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        made = await self._api.create(path_of("v1", "Event", namespace), body)
        self._written[event] = {"metadata": made["metadata"], "count": 1}
