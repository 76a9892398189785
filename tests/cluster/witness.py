"""A witness of all that is written to one namespace's services and their children.

It watches, so that no state in between escapes it, however short.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import aiohttp

from .history import CHILDREN, History, Moment
from .kube_api import ApiError, KubeApi, Object, path_of

WATCHED = {
    "InferenceService": "octavo.dev/v1alpha1",
    "Pod": "v1",
    "ReplicaSet": "apps/v1",
    **CHILDREN,
}
FIRST_LISTS_SECONDS = 20.0


class Witness:
    """`with Witness(kubeconfig, namespace) as witness: ...`, then `witness.history` is complete."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self._kubeconfig, self._namespace = kubeconfig, namespace
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="witness", daemon=True)
        self._seen: dict[tuple[str, str], int] = {}
        self.history = History()

    def __enter__(self) -> Witness:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._begin(), self._loop).result(FIRST_LISTS_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(FIRST_LISTS_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _begin(self) -> None:
        self._api = KubeApi(self._kubeconfig)
        since = {kind: await self._list(kind) for kind in WATCHED}
        self._tasks = [asyncio.create_task(self._watch(kind, since[kind])) for kind in WATCHED]

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        for kind in WATCHED:
            await self._list(kind)  # what the watches had not told yet
        await self._api.close()
        for each in ended:
            if not isinstance(each, asyncio.CancelledError):
                raise AssertionError(f"a watch of the witness ended: {each!r}")

    async def _watch(self, kind: str, since: str) -> None:
        """On and on from where it was cut; where that is forgotten, from what is there now."""
        path = path_of(WATCHED[kind], kind, self._namespace)
        while True:
            forgotten = False
            try:
                async for event in self._api.watch_from(path, {}, since):
                    forgotten = event["type"] == "ERROR"
                    if forgotten:
                        break
                    since = event["object"]["metadata"]["resourceVersion"]
                    self._note(kind, event["object"], event["type"] == "DELETED")
            except ApiError as error:
                forgotten = error.code == 410
            except (aiohttp.ClientError, TimeoutError, ValueError):
                pass
            if forgotten:
                since = await self._list_again(kind, since)
            await asyncio.sleep(0.02)

    async def _list_again(self, kind: str, since: str) -> str:
        while True:
            try:
                now = await self._list(kind)
            except (aiohttp.ClientError, TimeoutError, ApiError):
                await asyncio.sleep(0.02)
            else:
                self.history.gaps.append((int(since), int(now)))
                return now

    async def _list(self, kind: str) -> str:
        answer = await self._api.get(path_of(WATCHED[kind], kind, self._namespace))
        present = set()
        for item in answer["items"]:
            present.add((kind, item["metadata"]["uid"]))
            self._note(kind, item, False)
        version: str = answer["metadata"]["resourceVersion"]
        for key in self._seen.keys() - present:
            if key[0] == kind:
                last = next(
                    each for each in reversed(self.history.moments)
                    if each.kind == kind and each.item["metadata"]["uid"] == key[1]
                )  # fmt: skip
                self.history.moments.append(Moment(int(version), kind, last.item, gone=True))
                del self._seen[key]
        return version

    def _note(self, kind: str, item: Object, gone: bool) -> None:
        key, version = (kind, item["metadata"]["uid"]), int(item["metadata"]["resourceVersion"])
        if self._seen.get(key, 0) < version:
            self._seen[key] = version
            self.history.moments.append(Moment(version, kind, item, gone))
        if gone:
            self._seen.pop(key, None)
