"""One pod on a test node, from the scheduler's binding to its removal from the API."""

from __future__ import annotations

import asyncio
import base64
import copy
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import aiohttp

from octavo_operator.local.pod import PodRunner
from octavo_operator.local.resolver import Resolver
from octavo_operator.local.sandbox import Sandbox

from .events import EventRecorder
from .images import Image, find_image
from .kube_api import STRATEGIC, ApiError, KubeApi, Object, path_of

log = logging.getLogger(__name__)
PULL_RETRY_SECONDS = 1.0
RETRIES, RETRY_SECONDS = 20, 0.5  # of requests that the API server could not answer
HONOURED_SECURITY = {
    "runAsUser", "runAsGroup", "runAsNonRoot", "readOnlyRootFilesystem",
    "allowPrivilegeEscalation", "fsGroup", "fsGroupChangePolicy", "supplementalGroups",
}  # fmt: skip


class Runner(Protocol):
    """PodRunner or HollowRunner."""

    status: Object

    async def run(self) -> None: ...

    async def stop(self, grace_seconds: float | None = None) -> None: ...


class ClusterResolver(Resolver):
    """Secrets, ConfigMaps and tokens of one pod, from the API server."""

    def __init__(self, api: KubeApi, pod: Object) -> None:
        self._api = api
        self._pod = pod

    async def get_secret(self, namespace: str, name: str) -> dict[str, bytes] | None:
        found = await self._api.find(path_of("v1", "Secret", namespace, name))
        return None if found is None else _decoded(found.get("data"))

    async def get_config_map(self, namespace: str, name: str) -> dict[str, bytes] | None:
        found = await self._api.find(path_of("v1", "ConfigMap", namespace, name))
        if found is None:
            return None
        text = {key: value.encode() for key, value in (found.get("data") or {}).items()}
        return {**text, **_decoded(found.get("binaryData"))}

    async def get_token(
        self, namespace: str, service_account: str, audience: str | None, seconds: int
    ) -> str:
        meta = self._pod["metadata"]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
        spec: Object = {"expirationSeconds": max(seconds, 600), "boundObjectRef": bound}
        if audience:
            spec["audiences"] = [audience]
        path = path_of("v1", "ServiceAccount", namespace, service_account) + "/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str((await self._api.create(path, body))["status"]["token"])


class PodWorker:
    """Runs a pod and keeps its status; `update` tells it each change of the object."""

    def __init__(
        self,
        api: KubeApi,
        pod: Object,
        make_runner: Callable[[Object, PodWorker], Runner],
        images: Mapping[str, Image] | None,
    ) -> None:
        """`images` None: any image is there (hollow)."""
        self._api = api
        self.pod = pod
        self._make_runner = make_runner
        self._images = images
        self._path = path_of_pod(pod)
        self.events = EventRecorder(api, pod, "kubelet", pod["spec"]["nodeName"])
        self._status: Object | None = None
        self._dirty = asyncio.Event()
        self._over = False
        self._gone = False
        self._deleting = asyncio.Event()
        self._stops: set[asyncio.Task[None]] = set()
        self._runner: Runner | None = None

    async def run(self) -> None:
        """Returns when the pod is gone from the API, or when this task is cancelled."""
        writer = asyncio.create_task(self._write_statuses())
        try:
            if await self._pull():
                runner = self._runner = self._make_runner(self._prepared(), self)
                if self._deleting.is_set():
                    self._stop_runner()
                await runner.run()
            self._over = True
            self._dirty.set()
            await writer
            await self._deleting.wait()
            await self._remove()
        finally:
            writer.cancel()
            await self.events.close()

    def update(self, pod: Object) -> None:
        """The object changed: a deletion starts or shortens the grace."""
        before, self.pod = self.pod, pod
        grace = _deletion_grace(pod)
        shorter = grace is not None and grace < (_deletion_grace(before) or 0.0)
        if grace is not None and (shorter or not self._deleting.is_set()):
            self._deleting.set()
            self._stop_runner()

    def vanished(self) -> None:
        """The object was removed by force: the processes go at once, there is nothing to write."""
        self._gone = True
        self._deleting.set()
        self._stop_runner()

    def set_status(self, status: Object) -> None:
        """Writes it soon; of several in a row only the last."""
        self._status = status
        self._dirty.set()

    def _stop_runner(self) -> None:
        if self._runner is not None:
            grace = 0.0 if self._gone else _deletion_grace(self.pod)
            task = asyncio.create_task(self._runner.stop(grace))
            self._stops.add(task)
            task.add_done_callback(self._stops.discard)

    async def _pull(self) -> bool:
        """True once all images are there; False if the pod is deleted while one is missing."""
        told: list[str] = []
        while not self._deleting.is_set():
            containers = self._containers()
            missing = [c["image"] for c in containers if not self._has(c["image"])]
            if not missing:
                return True
            text = f"image {missing[0]!r} is unknown to this test node"
            if missing != told:
                told = missing
                self.set_status(self._waiting("ErrImagePull", text, missing))
                self.events.record("Warning", "Failed", f"Failed to pull image: {text}")
            else:
                back_off = f'Back-off pulling image "{missing[0]}"'
                self.set_status(self._waiting("ImagePullBackOff", back_off, missing))
            await self._pause(PULL_RETRY_SECONDS)
        return False

    def _has(self, image: str) -> bool:
        return self._images is None or find_image(self._images, image) is not None

    def _containers(self) -> list[Object]:
        spec = self.pod["spec"]
        return [*(spec.get("initContainers") or ()), *spec["containers"]]

    def _waiting(self, reason: str, message: str, missing: list[str]) -> Object:
        def status(container: Object) -> Object:
            waiting = {"reason": "ContainerCreating"}
            if container["image"] in missing:
                waiting = {"reason": reason, "message": message}
            return {
                "name": container["name"], "image": container["image"], "imageID": "",
                "ready": False, "started": False, "restartCount": 0,
                "state": {"waiting": waiting}, "lastState": {},
            }  # fmt: skip

        spec = self.pod["spec"]
        result: Object = {
            "phase": "Pending",
            "containerStatuses": [status(container) for container in spec["containers"]],
        }
        if spec.get("initContainers"):
            result["initContainerStatuses"] = [status(c) for c in spec["initContainers"]]
        return result

    def _prepared(self) -> Object:
        """The pod with its images' entry points where it names no command."""
        pod = copy.deepcopy(self.pod)
        for container in [*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]]:
            image = find_image(self._images or {}, container["image"])
            if image is not None and not container.get("command") and image.entrypoint:
                container["command"] = list(image.entrypoint)
        if self._images is not None and (ignored := _ignored_security(pod)):
            text = f"securityContext: {', '.join(ignored)} not applied on this test node"
            self.events.record("Normal", "NotApplied", text)
        return pod

    async def _write_statuses(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            status, self._status = self._status, None
            if status is not None:
                await self._write(status)
            if self._over and self._status is None:
                return

    async def _write(self, status: Object) -> None:
        body = {"metadata": {"uid": self.pod["metadata"]["uid"]}, "status": status}
        for _ in range(RETRIES):
            if self._gone:
                return
            try:
                await self._api.patch(f"{self._path}/status", body, STRATEGIC)
                return
            except ApiError as error:
                if error.code in (404, 409):  # gone, or another pod of that name
                    return
                if error.code == 422:
                    log.error("status of %s refused: %s", self._path, error)
                    self.events.record("Warning", "StatusRefused", str(error))
                    return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(RETRY_SECONDS)

    async def _remove(self) -> None:
        """The final delete, which the kubelet sends once nothing of the pod runs any more."""
        preconditions = {"uid": self.pod["metadata"]["uid"]}
        for _ in range(RETRIES):
            if self._gone:
                return
            try:
                await self._api.delete(
                    self._path, gracePeriodSeconds=0, preconditions=preconditions
                )
                return
            except ApiError as error:
                if error.code == 409:
                    return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(RETRY_SECONDS)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._deleting.wait(), seconds)
        except TimeoutError:
            pass


def make_pod_runner(
    api: KubeApi,
    sandbox: Sandbox,
    log_folder: Path,
    *,
    host_ip: str,
    backoff_seconds: float,
) -> Callable[[Object, PodWorker], Runner]:
    """How real nodes run pods: the runner of `octavo up` in this node's sandbox."""

    def make(pod: Object, worker: PodWorker) -> Runner:
        meta = pod["metadata"]
        return PodRunner(
            pod,
            sandbox,
            resolve=ClusterResolver(api, pod),
            on_status=worker.set_status,
            on_event=worker.events.record,
            log_folder=log_folder / f"{meta['namespace']}_{meta['name']}_{meta['uid'][:8]}",
            host_ip=host_ip,
            backoff_seconds=backoff_seconds,
            retry_seconds=0.5,
        )

    return make


def path_of_pod(pod: Object) -> str:
    return path_of("v1", "Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])


def _ignored_security(pod: Object) -> list[str]:
    """What a securityContext asks for and this node does not do; dropped capabilities a user
    other than root has not got anyway."""
    spec = pod["spec"]
    contexts = [spec.get("securityContext") or {}]
    contexts += [container.get("securityContext") or {} for container in spec["containers"]]
    asked = {key for context in contexts for key, value in context.items() if value}
    if "runAsUser" in asked and not any((c.get("capabilities") or {}).get("add") for c in contexts):
        asked.discard("capabilities")
    return sorted(asked - HONOURED_SECURITY)


def _deletion_grace(pod: Object) -> float | None:
    """None if the pod is not being deleted."""
    meta = pod["metadata"]
    if not meta.get("deletionTimestamp"):
        return None
    return float(meta.get("deletionGracePeriodSeconds") or 0)


def _decoded(data: dict[str, str] | None) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in (data or {}).items()}
