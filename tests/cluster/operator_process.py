"""Octavo's operator as a process of this host, under its own ServiceAccount."""

from __future__ import annotations

import os
import re
import sys
import time
import urllib.request
from pathlib import Path

from .cluster import Cluster, wait_for
from .images import ROOT
from .kube_api import path_of
from .processes import Daemon, free_ports

NAMESPACE = "octavo-system"
SERVICE_ACCOUNT = "octavo-operator"
RIGHTS = ROOT / "charts" / "octavo" / "files" / "rbac.yaml"  # what the chart installs
CRDS = ROOT / "crds"


NO_HUB = "http://127.0.0.1:9"
"""Refuses at once: nobody listens there."""


def environment(kubeconfig: Path, hub: str = NO_HUB) -> dict[str, str]:
    """Of an operator's process; `hub` stands for the Hub, which tests never ask."""
    sources = [str(ROOT / name) for name in ("server", "kernels", "operator")]
    return {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "PYTHONPATH": ":".join(sources),
        "HF_ENDPOINT": hub,
        "POD_NAMESPACE": NAMESPACE,
    }


class Operator:
    """Runs from the constructor until `stop()`; `restart()` is a crash and a new start."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        cluster.kubectl("apply", "-f", str(CRDS))
        cluster.wait_for_crd()
        cluster.client.create(path_of("v1", "Namespace"), {"metadata": {"name": NAMESPACE}})
        cluster.kubectl("apply", "-f", str(RIGHTS))
        self.kubeconfig = cluster.service_account_kubeconfig(NAMESPACE, SERVICE_ACCOUNT)
        (self.metrics_port,) = free_ports(1)
        self._daemon = self._start()

    @property
    def log(self) -> Path:
        return self._daemon.log

    @property
    def pid(self) -> int:
        return self._daemon.pid

    def requests(self, code: str = "") -> float:
        """How many it made (watches apart), or was answered with this HTTP status; 0 for none."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url) as answer:
            text = answer.read().decode()
        label = f'code="{code}"' if code else ""
        made = rf"^octavo_operator_api_requests_total\S*{label}\S* (\S+)$"
        return sum(map(float, re.findall(made, text, re.M)))

    def requests_in(self, seconds: float) -> float:
        before = self.requests()
        time.sleep(seconds)
        return self.requests() - before

    def check(self) -> None:
        """Raises DaemonFailed with the log's end if it has ended."""
        self._daemon.raise_if_dead()

    def restart(self, *options: str, hub: str = NO_HUB, kubeconfig: Path | None = None) -> None:
        """SIGKILL, then a new process with these options beside its own."""
        self._daemon.kill()
        self._daemon = self._start(*options, hub=hub, kubeconfig=kubeconfig)

    def kill(self) -> None:
        self._daemon.kill()

    def stop(self) -> None:
        self._daemon.stop()

    def _start(self, *options: str, hub: str = NO_HUB, kubeconfig: Path | None = None) -> Daemon:
        def served() -> bool:
            found = self._cluster.kubectl(
                "get", "inferenceservices", "-A", kubeconfig=self.kubeconfig, check=False
            )
            return found.returncode == 0

        wait_for("the operator's account may list its objects", served)
        command = [sys.executable, "-m", "octavo_server.cli", "operator", "--liveness-port=0"]
        command += [f"--metrics-port={self.metrics_port}", *options]
        variables = environment(kubeconfig or self.kubeconfig, hub)
        return Daemon("operator", command, self._cluster.folder, variables)
