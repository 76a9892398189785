"""A whole cluster for tests: control plane, nodes, pod network, kube-proxy if it works here.

`python -m tests.cluster.cluster` starts one with a GPU node and waits for Ctrl-C.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from . import build
from .control_plane import ControlPlane
from .hollow import steady
from .images import Image, default_images
from .kube_api import Client, Object, path_of
from .kube_proxy import NODE_NAME, KubeProxy, KubeProxyUnavailable
from .network import PodNetwork, missing_rights
from .node_agent import Node, NodeAgent
from .processes import DaemonFailed
from .session import Session

T = TypeVar("T")


class Timeout(Exception):
    """Something awaited did not come true; the text says what was seen last."""


class Cluster:
    """Started by the constructor; `stop()` leaves no process, link, rule or folder."""

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cluster", daemon=True)
        self._undo: list[Callable[[], None]] = []
        self.failed = False  # keeps the logs
        try:
            self._start(say)
        except BaseException:
            self.failed = True
            self.stop()
            raise

    def _start(self, say: Callable[[str], None]) -> None:
        assets = build.ensure_assets()
        started = time.monotonic()
        self.session = Session()
        self.folder = self.session.folder
        self._undo.append(lambda: self.session.close(keep_folder=self.failed))
        self._thread.start()
        self._undo.append(self._stop_loop)
        self.plane = ControlPlane(
            assets,
            self.folder / "control-plane",
            service_cidr=str(self.session.service_subnet),
            addresses=(str(next(self.session.pod_subnet.hosts())),),  # the pods' gateway
        )
        self._undo.append(self.plane.stop)
        self.plane.start()
        self.kubeconfig = self.plane.kubeconfig
        self.client = Client(self.kubeconfig, self._loop)
        self._undo.append(self.client.close)
        self.network = PodNetwork(self.session)
        self.images: dict[str, Image] = default_images(self.folder)
        self.agent = self._run(self._start_agent())
        self._undo.append(lambda: self._run(self.agent.stop()))
        self.kube_proxy_missing = ""  # why Service addresses do not work
        taint = {"key": "octavo.dev/not-a-node", "effect": "NoSchedule"}
        self.add_node(NODE_NAME, script=steady, taints=[taint])
        try:
            proxy = KubeProxy(self.session, self.plane)
            self._undo.append(proxy.stop)
        except (KubeProxyUnavailable, DaemonFailed) as error:
            self.kube_proxy_missing = str(error)
        seconds = time.monotonic() - started
        missing = self.kube_proxy_missing
        proxy_text = f"no kube-proxy ({missing})" if missing else "kube-proxy (nftables)"
        say(f"cluster {self.session.identity}: ready in {seconds:.1f} s, {proxy_text}")

    def stop(self) -> None:
        """Everything in the reverse order of its start; an error does not stop the rest."""
        errors = []
        while self._undo:
            try:
                self._undo.pop()()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def add_node(self, name: str, **settings: Any) -> Node:
        """Settings as in Node; `script` makes it hollow."""
        node = Node(name=name, **settings)
        self._run(self.agent.add_node(node))
        return node

    def remove_node(self, name: str) -> None:
        self._run(self.agent.remove_node(name))

    def wait_for_crd(self) -> None:
        """`kubectl wait` alone fails on a CRD that has no status yet."""
        waited = ["wait", "--for=condition=Established", "crd/inferenceservices.octavo.dev"]
        wait_for("the CRD", lambda: self.kubectl(*waited, check=False).returncode == 0)

    def kubectl(
        self,
        *arguments: str,
        stdin: str | None = None,
        check: bool = True,
        kubeconfig: Path | None = None,
        timeout_seconds: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Raises AssertionError with stderr if it fails, unless `check` is False."""
        command = [kubectl_path(self.plane.assets), f"--kubeconfig={kubeconfig or self.kubeconfig}"]
        environment = {**os.environ, "HOME": str(self.folder)}  # its discovery cache goes there
        done = subprocess.run(
            [*command, *arguments], input=stdin, capture_output=True, text=True,
            env=environment, timeout=timeout_seconds,
        )  # fmt: skip
        if check and done.returncode:
            text = f"kubectl {' '.join(arguments)} gave {done.returncode}:\n{done.stderr}"
            raise AssertionError(text + done.stdout)
        return done

    def endpoints(self, namespace: str, service: str) -> list[tuple[str, int]]:
        """Ready (address, port) pairs of a Service's EndpointSlices."""
        slices = self.client.list(
            path_of("discovery.k8s.io/v1", "EndpointSlice", namespace),
            labelSelector=f"kubernetes.io/service-name={service}",
        )
        return [
            (endpoint["addresses"][0], each["ports"][0]["port"])
            for each in slices
            for endpoint in each.get("endpoints") or ()
            if endpoint.get("conditions", {}).get("ready") and each.get("ports")
        ]

    def service_address(self, namespace: str, service: str) -> tuple[str, int]:
        """The Service's own address where kube-proxy works, else its first ready endpoint."""
        if not self.kube_proxy_missing:
            spec = self.client.get(path_of("v1", "Service", namespace, service))["spec"]
            if spec["clusterIP"] != "None":
                return spec["clusterIP"], spec["ports"][0]["port"]
        ready = self.endpoints(namespace, service)
        if not ready:
            raise AssertionError(f"Service {namespace}/{service} has no ready endpoint")
        return ready[0]

    def service_account_kubeconfig(
        self, namespace: str, name: str, seconds: int = 7200, *, url: str = "", way: str = ""
    ) -> Path:
        """A kubeconfig with a token of that ServiceAccount, as a pod of it would have; `way` names
        the file of one that goes through another `url`.
        """
        path = path_of("v1", "ServiceAccount", namespace, name) + "/token"
        body: Object = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        }
        token = self.client.create(path, body)["status"]["token"]
        return self.plane.kubeconfig_with_token(f"{namespace}-{name}{way}", token, url)

    def events(self, namespace: str, name: str = "") -> list[Object]:
        """Events of a namespace, of one object's name if given, oldest first."""
        found = self.client.list(path_of("v1", "Event", namespace))
        return [e for e in found if name in ("", e["involvedObject"]["name"])]

    async def _start_agent(self) -> NodeAgent:
        agent = NodeAgent(self.kubeconfig, self.folder, self.network, self.images)
        await agent.start()
        return agent

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


def what_is_missing() -> str | None:
    """None if a cluster can run here, else one line that names what is missing."""
    try:
        if build.find_assets() is None:
            # Not built here: a first build takes minutes, a test's time limit is shorter.
            how = build.can_build() or "`make control-plane` builds them"
            return f"Kubernetes' own binaries are missing: {how}"
    except build.MissingAssets as error:
        return str(error)
    return missing_rights()


def kubectl_path(assets: Path) -> str:
    """The built kubectl, else one on PATH."""
    built = assets / "kubectl"
    found = str(built) if built.is_file() else shutil.which("kubectl")
    if found is None:
        raise AssertionError(f"no kubectl in {assets} and none on PATH")
    return found


def wait_for(
    what: str,
    condition: Callable[[], T | None],
    timeout_seconds: float = 30.0,
    seen: Callable[[], object] | None = None,
) -> T:
    """Polls until `condition()` is truthy and returns that; `seen()` is put into the error."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            last = f"; last seen: {seen()}" if seen is not None else ""
            raise Timeout(f"not after {timeout_seconds:g} s: {what}{last}")
        time.sleep(0.1)


def main() -> int:
    missing = what_is_missing()
    if missing:
        print(f"error: {missing}", file=sys.stderr)
        return 1
    cluster = Cluster(say=print)
    try:
        cluster.add_node("gpu-1", gpus=8)
        print(f"export KUBECONFIG={cluster.kubeconfig}")
        print(f"kubectl: {kubectl_path(cluster.plane.assets)}; Ctrl-C ends it")
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        cluster.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
