"""`octavo metrics-api` as processes of this host, behind the Service that the API server asks."""

from __future__ import annotations

import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from octavo_operator import names
from tests.operator.test_pod_load import ANSWER

from .cluster import Cluster, wait_for
from .images import ROOT
from .kube_api import path_of
from .operator_process import NAMESPACE, environment
from .processes import Daemon, free_ports

RIGHTS = ROOT / "charts" / "octavo" / "files" / "rbac-metrics-api.yaml"
NAME = "octavo-metrics-api"
GROUP = "custom.metrics.k8s.io"
APIREGISTRATION = "apiregistration.k8s.io/v1"


class MetricsApi:
    """Two replicas from the constructor until `stop()`, which also takes the APIServices away:
    while nobody answers for them, no namespace can be deleted.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        cluster.kubectl("apply", "-f", str(RIGHTS))
        self.kubeconfig = cluster.service_account_kubeconfig(NAMESPACE, NAME)
        self.ports = tuple(free_ports(2))
        for port in self.ports:
            self._announce(port)
        # At once: they must agree on a certificate.
        self._daemons = [self._start(port) for port in self.ports]

    def _announce(self, port: int) -> None:
        """The Service has no selector: its endpoints are of this host, by the pods' gateway."""
        client = self._cluster.client
        if client.find(path_of("v1", "Service", NAMESPACE, NAME)) is None:
            spec = {"ports": [{"name": "https", "port": 443}]}
            metadata = {"name": NAME, "namespace": NAMESPACE}
            client.create(path_of("v1", "Service", NAMESPACE), {"metadata": metadata, "spec": spec})
        client.apply(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"{NAME}-{port}",
                    "namespace": NAMESPACE,
                    "labels": {"kubernetes.io/service-name": NAME},
                },
                "addressType": "IPv4",
                "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
                "endpoints": [
                    {
                        "addresses": [self._cluster.network.gateway],
                        "conditions": {"ready": True},
                    }
                ],
            }
        )

    def _start(self, port: int) -> Daemon:
        command = [
            sys.executable, "-m", "octavo_server.cli", "metrics-api",
            f"--own-namespace={NAMESPACE}", f"--cluster-role={NAME}",
            f"--port={port}", "--liveness-port=0",
        ]  # fmt: skip
        variables = environment(self.kubeconfig)
        return Daemon(f"metrics-api-{port}", command, self._cluster.folder, variables)

    @property
    def logs(self) -> str:
        return "\n".join(each.log.read_text(errors="replace") for each in self._daemons)

    def wait_until_available(self) -> None:
        wait_for("the API server asks for metrics here", self.available, 60, lambda: self.logs)

    def available(self) -> bool:
        for each in self._daemons:
            each.raise_if_dead()
        found = [
            self._cluster.client.find(
                path_of(APIREGISTRATION, "APIService", name=f"{each}.{GROUP}")
            )
            for each in ("v1beta1", "v1beta2")
        ]
        return all(
            any(
                (each["type"], each["status"]) == ("Available", "True")
                for each in ((live or {}).get("status") or {}).get("conditions") or ()
            )
            for live in found
        )

    def certificates(self) -> set[str]:
        """That the replicas show."""
        return {ssl.get_server_certificate(("127.0.0.1", port), timeout=10) for port in self.ports}

    def kill(self) -> None:
        """All replicas at once; what they registered stays."""
        for each in self._daemons:
            each.stop()
        self._daemons = []

    def begin_again(self) -> None:
        self._daemons = [self._start(port) for port in self.ports]

    def stop(self) -> None:
        self.kill()
        for version in ("v1beta1", "v1beta2"):
            self._cluster.client.delete(
                path_of(APIREGISTRATION, "APIService", name=f"{version}.{GROUP}")
            )
        for port in self.ports:  # nobody is behind them for those that come after
            self._cluster.client.delete(
                path_of("discovery.k8s.io/v1", "EndpointSlice", NAMESPACE, f"{NAME}-{port}")
            )


class LoadServer:
    """Says at an address of its own what a server of a pod would: `load` may change, `hung` too."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.load: dict[str, Any] = {**ANSWER, "running": 0, "waiting": 0, "server_load": 0}
        self.broken = False
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(owner.load).encode()
                self.send_response(500 if owner.broken else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((address, names.PORT), Handler)
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
