"""Test nodes: Node objects with any number of GPUs, and the pods that the scheduler gives them.

One agent serves all nodes of a session. A node is real (its pods are processes of this machine, in
namespaces of their own) or hollow (its pods are statuses by a script).
"""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from .hollow import HollowRunner, Script
from .images import Image
from .kube_api import STRATEGIC, ApiError, KubeApi, Object, path_of
from .network import PodNetwork
from .pod_worker import PodWorker, Runner, make_pod_runner, path_of_pod
from .sandbox import NamespaceSandbox

log = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 5.0  # the controller manager of these tests waits 20 s
KUBELET_VERSION = "v1.37.2"
STOP_SECONDS = 10.0


@dataclass(slots=True)
class Node:
    name: str
    gpus: int = 0
    cpus: int = 64
    memory: str = "512Gi"
    pods: int = 1000
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: list[Object] = field(default_factory=list)
    script: Script | None = None  # hollow if set
    backoff_seconds: float = 10.0  # of containers that crash; a kubelet's is 10
    beating: bool = True  # False: it falls silent, as a machine that lost power


class NodeAgent:
    """Lives in one event loop, from `start` to `stop`."""

    def __init__(
        self,
        kubeconfig: Path,
        folder: Path,
        network: PodNetwork | None,
        images: Mapping[str, Image],
    ) -> None:
        """`network` None: hollow nodes only. `images` may change while the agent runs."""
        self._api = KubeApi(kubeconfig)
        self._network = network
        self._images = images
        self.log_folder = folder / "pods"
        self._sandbox = (
            NamespaceSandbox(network, images, folder / "sandbox") if network is not None else None
        )
        self._nodes: dict[str, Node] = {}
        self._workers: dict[str, tuple[PodWorker, asyncio.Task[None]]] = {}
        self._unbound: dict[str, Object] = {}  # pods of nodes that are not ours (yet)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._watch_pods()),
            asyncio.create_task(self._heartbeats()),
        ]

    async def stop(self) -> None:
        """Ends all pods' processes at once; the API objects stay."""
        for task in self._tasks:
            task.cancel()
        workers = [task for _, task in self._workers.values()]
        for worker, _ in self._workers.values():
            worker.vanished()
        if workers:
            await asyncio.wait(workers, timeout=STOP_SECONDS)
        for task in workers:
            task.cancel()
        await asyncio.gather(*self._tasks, *workers, return_exceptions=True)
        await self._api.close()

    async def add_node(self, node: Node) -> None:
        """Registers a Node that is Ready; the scheduler may use it at once."""
        if node.script is None and self._sandbox is None:
            raise ValueError(f"node {node.name}: real nodes need a network")
        path = path_of("v1", "Node")
        try:
            await self._api.create(path, _node_object(node, self._host_ip))
        except ApiError as error:
            if error.code != 409:
                raise
        self._nodes[node.name] = node
        await self._beat(node, with_status=True)
        for pod in [p for p in self._unbound.values() if p["spec"]["nodeName"] == node.name]:
            self._changed(self._unbound.pop(pod["metadata"]["uid"]))

    async def remove_node(self, name: str) -> None:
        """Deletes the Node and its pods, without grace, as when a machine is taken away."""
        self._nodes.pop(name, None)
        await self._api.delete(path_of("v1", "Node", name=name))
        await self._api.delete(path_of("coordination.k8s.io/v1", "Lease", "kube-node-lease", name))
        there = [each for each in self._workers.values() if each[0].pod["spec"]["nodeName"] == name]
        for worker, _ in there:
            worker.vanished()
        # Kubernetes' own collector of such pods takes a minute.
        await asyncio.gather(
            *(self._api.delete(path_of_pod(each.pod), gracePeriodSeconds=0) for each, _ in there)
        )
        if there:
            await asyncio.wait([task for _, task in there], timeout=STOP_SECONDS)

    @property
    def _host_ip(self) -> str:
        return self._network.gateway if self._network is not None else "198.18.0.1"

    async def _watch_pods(self) -> None:
        selector = "spec.nodeName!="
        async for kind, pod in self._api.watch("/api/v1/pods", fieldSelector=selector):
            if kind == "DELETED":
                self._unbound.pop(pod["metadata"]["uid"], None)
                found = self._workers.get(pod["metadata"]["uid"])
                if found is not None:
                    found[0].vanished()
            else:
                self._changed(pod)

    def _changed(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        node = self._nodes.get(pod["spec"]["nodeName"])
        found = self._workers.get(uid)
        if found is not None:
            found[0].update(pod)
        elif node is None:
            self._unbound[uid] = pod
        elif pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            # Ended before we knew it, or evicted: nothing runs, only a deletion is to be finished.
            if pod["metadata"].get("deletionTimestamp"):
                self._start(pod, node)
        else:
            self._start(pod, node)

    def _start(self, pod: Object, node: Node) -> None:
        # Items of a list carry no kind; events about the pod need it.
        pod = {"apiVersion": "v1", "kind": "Pod", **pod}
        images = self._images if node.script is None else None
        worker = PodWorker(self._api, pod, self._runner_factory(node), images)
        worker.update(pod)
        task = asyncio.create_task(worker.run(), name=f"pod {pod['metadata']['name']}")
        self._workers[pod["metadata"]["uid"]] = (worker, task)
        task.add_done_callback(lambda done: self._ended(pod, done))

    def _ended(self, pod: Object, task: asyncio.Task[None]) -> None:
        self._workers.pop(pod["metadata"]["uid"], None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("pod %s", pod["metadata"]["name"], exc_info=error)

    def _runner_factory(self, node: Node) -> Callable[[Object, PodWorker], Runner]:
        if node.script is None:
            assert self._sandbox is not None
            return make_pod_runner(
                self._api, self._sandbox, self.log_folder,
                host_ip=self._host_ip, backoff_seconds=node.backoff_seconds,
            )  # fmt: skip
        script, host_ip = node.script, self._host_ip

        def make(pod: Object, worker: PodWorker) -> Runner:
            return HollowRunner(
                pod, script, on_status=worker.set_status, on_event=worker.events.record,
                host_ip=host_ip, backoff_seconds=node.backoff_seconds,
            )  # fmt: skip

        return make

    async def _heartbeats(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            for node in [node for node in self._nodes.values() if node.beating]:
                try:
                    await self._beat(node)
                except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                    log.warning("heartbeat of %s: %s", node.name, error)

    async def _beat(self, node: Node, *, with_status: bool = False) -> None:
        """Renews the node's lease; the Node's own conditions only when it (re)joins."""
        if with_status:
            conditions = {"status": {"conditions": _conditions()}}
            path = path_of("v1", "Node", name=node.name)
            await self._api.patch(f"{path}/status", conditions, STRATEGIC)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": node.name, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": node.name, "leaseDurationSeconds": 40, "renewTime": now},
        }
        await self._api.apply(lease, "kubelet")


def _node_object(node: Node, host_ip: str) -> Object:
    amounts = {
        "cpu": str(node.cpus),
        "memory": node.memory,
        "pods": str(node.pods),
        "ephemeral-storage": "1Ti",
        "nvidia.com/gpu": str(node.gpus),
    }
    if not node.gpus:
        del amounts["nvidia.com/gpu"]
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), "amd64")
    labels = {
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture,
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": {**labels, **node.labels}},
        "spec": {"taints": node.taints},
        "status": {
            "capacity": amounts,
            "allocatable": amounts,
            "conditions": _conditions(),
            "addresses": [
                {"type": "InternalIP", "address": host_ip},
                {"type": "Hostname", "address": node.name},
            ],
            "nodeInfo": {
                "architecture": architecture, "operatingSystem": "linux", "bootID": "",
                "containerRuntimeVersion": "octavo-test://1", "kernelVersion": platform.release(),
                "kubeProxyVersion": "", "kubeletVersion": KUBELET_VERSION, "machineID": "",
                "osImage": "octavo test node", "systemUUID": "",
            },
        },
    }  # fmt: skip


def _conditions() -> list[Object]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def condition(kind: str, status: str, reason: str) -> Object:
        times = {"lastHeartbeatTime": now, "lastTransitionTime": now}
        return {"type": kind, "status": status, "reason": reason, "message": "", **times}

    return [
        condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID"),
        condition("Ready", "True", "KubeletReady"),
    ]
