"""A real control plane on 127.0.0.1: etcd, API server, controller manager and scheduler."""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from .certificates import Authority, certificate_user, write_key, write_kubeconfig
from .processes import Daemon, DaemonFailed, free_ports, stop_all

READY_TIMEOUT_SECONDS = 60.0  # about 8 s on two idle cores
API_SERVER_STOP_SECONDS = 2.0
SERVICE_ACCOUNT_ISSUER = "https://kubernetes.default.svc"


class ControlPlane:
    """Runs from `start()` to `stop()`; everything it writes is in `folder`.

    `addresses`: others than loopback where somebody passes the API server's connections on.
    """

    def __init__(
        self,
        assets: Path,
        folder: Path,
        *,
        service_cidr: str = "10.0.0.0/24",
        addresses: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.assets = assets
        folder.mkdir(parents=True, exist_ok=True)
        etcd, etcd_peer, api, controller_manager, scheduler = free_ports(5)
        self.url = f"https://127.0.0.1:{api}"
        self.authority = Authority(folder, "ca")
        self._front_authority = Authority(folder, "front-proxy-ca")
        self._service_account_key = write_key(folder / "service-account.key")
        self.kubeconfig = self.kubeconfig_for("admin", "octavo-test-admin", ("system:masters",))
        self._daemons: list[Daemon] = []
        self._ports = (etcd, etcd_peer, api, controller_manager, scheduler)
        self._service_cidr = service_cidr
        self._addresses = addresses

    def start(self, timeout_seconds: float = READY_TIMEOUT_SECONDS) -> None:
        """Returns when all components answer their health endpoints.

        Raises DaemonFailed, with the log's end, when one ended or the time is over.
        """
        etcd, etcd_peer, api, controller_manager, scheduler = self._ports
        deadline = time.monotonic() + timeout_seconds
        try:
            self._start_etcd(etcd, etcd_peer)
            self._start_api_server(api, etcd)
            # The others give up when the API server has not written its own RBAC yet.
            self._wait_for(f"{self.url}/readyz", deadline)
            self._start_controller_manager(controller_manager)
            self._start_scheduler(scheduler)
            self._wait_for(f"https://127.0.0.1:{controller_manager}/healthz", deadline)
            self._wait_for(f"https://127.0.0.1:{scheduler}/readyz", deadline)
        except BaseException:
            self.stop()
            raise

    def stop_api_server(self, *, by_crash: bool) -> None:
        """Its clients then find nobody there, until `start_api_server`. Without a crash it is asked
        to end: it takes no new ones, and those that watch hold it up for a while.
        """
        (server,) = [each for each in self._daemons if each.name == "kube-apiserver"]
        self._daemons.remove(server)
        if by_crash:
            server.kill()
        else:
            server.stop(API_SERVER_STOP_SECONDS)

    def start_api_server(self) -> None:
        """On the same port and data; returns when it is ready."""
        etcd, _, api, _, _ = self._ports
        self._start_api_server(api, etcd)
        self._wait_for(f"{self.url}/readyz", time.monotonic() + READY_TIMEOUT_SECONDS)

    def kubeconfig_for(self, name: str, user: str, groups: tuple[str, ...] = ()) -> Path:
        """Writes NAME.kubeconfig for a user that shows a client certificate."""
        pair = self.authority.issue(name, common_name=user, groups=groups)
        return write_kubeconfig(
            self.folder / f"{name}.kubeconfig",
            self.url,
            self.authority.certificate_path,
            certificate_user(*pair),
        )

    def kubeconfig_with_token(self, name: str, token: str, url: str = "") -> Path:
        """Writes NAME.kubeconfig for a bearer token, such as a ServiceAccount's; `url` is a way to
        the API server that is not its own.
        """
        return write_kubeconfig(
            self.folder / f"{name}.kubeconfig",
            url or self.url,
            self.authority.certificate_path,
            {"token": token},
        )

    def stop(self) -> None:
        """Ends all processes, the API server's clients first, etcd last."""
        clients = [daemon for daemon in self._daemons if daemon.name != "etcd"]
        stop_all([daemon for daemon in clients if daemon.name != "kube-apiserver"])
        stop_all([daemon for daemon in clients if daemon.name == "kube-apiserver"])
        stop_all([daemon for daemon in self._daemons if daemon.name == "etcd"])

    def _wait_for(self, endpoint: str, deadline: float) -> None:
        context = ssl.create_default_context(cafile=self.authority.certificate_path)
        context.load_cert_chain(self.folder / "admin.crt", self.folder / "admin.key")
        while not _answers(endpoint, context):
            for daemon in self._daemons:
                daemon.raise_if_dead()
            if time.monotonic() > deadline:
                logs = "\n".join(f"{d.name}:\n{d.log_tail(5)}" for d in self._daemons)
                raise DaemonFailed(f"{endpoint} does not answer\n{logs}")
            time.sleep(0.05)

    def _start(self, name: str, *flags: str) -> None:
        command = [str(self.assets / name), *flags]
        self._daemons.append(Daemon(name, command, self.folder))

    def _start_etcd(self, port: int, peer_port: int) -> None:
        client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
        self._start(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # nothing here outlives the session
            "--log-level=warn",
        )

    def _start_api_server(self, port: int, etcd_port: int) -> None:
        serving_certificate, serving_key = self.authority.issue(
            "kube-apiserver",
            addresses=("127.0.0.1", *self._addresses),
            host_names=("localhost", "kubernetes", "kubernetes.default.svc"),
        )
        proxy_certificate, proxy_key = self._front_authority.issue("front-proxy-client")
        self._start(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{etcd_port}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            # The `kubernetes` Service may not have a loopback endpoint: it gets none.
            "--endpoint-reconciler-type=none",
            f"--service-cluster-ip-range={self._service_cidr}",
            f"--tls-cert-file={serving_certificate}",
            f"--tls-private-key-file={serving_key}",
            f"--client-ca-file={self.authority.certificate_path}",
            "--authorization-mode=Node,RBAC",
            f"--service-account-issuer={SERVICE_ACCOUNT_ISSUER}",
            f"--service-account-key-file={self._service_account_key}",
            f"--service-account-signing-key-file={self._service_account_key}",
            f"--requestheader-client-ca-file={self._front_authority.certificate_path}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={proxy_certificate}",
            f"--proxy-client-key-file={proxy_key}",
            "--enable-aggregator-routing=true",
            "--delete-collection-workers=16",
            "--profiling=false",
        )

    def _start_controller_manager(self, port: int) -> None:
        user = "system:kube-controller-manager"
        kubeconfig = self.kubeconfig_for("kube-controller-manager", user)
        self._start(
            "kube-controller-manager",
            *self._component_flags(port, kubeconfig),
            "--controllers=*",
            # Each controller is its own ServiceAccount, so the built-in RBAC is what counts.
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={self._service_account_key}",
            f"--root-ca-file={self.authority.certificate_path}",
            f"--service-cluster-ip-range={self._service_cidr}",
            "--kube-api-qps=300",
            "--kube-api-burst=600",
            "--concurrent-gc-syncs=20",
            "--endpointslice-updates-batch-period=0s",
            "--node-monitor-period=1s",
            "--node-monitor-grace-period=20s",
            "--horizontal-pod-autoscaler-sync-period=3s",
            "--horizontal-pod-autoscaler-initial-readiness-delay=1s",
        )

    def _start_scheduler(self, port: int) -> None:
        kubeconfig = self.kubeconfig_for("kube-scheduler", "system:kube-scheduler")
        self._start(
            "kube-scheduler",
            *self._component_flags(port, kubeconfig),
            "--kube-api-qps=300",
            "--kube-api-burst=600",
        )

    def _component_flags(self, port: int, kubeconfig: Path) -> tuple[str, ...]:
        certificate, key = self.authority.issue(
            f"{kubeconfig.stem}-serving", addresses=("127.0.0.1",)
        )
        return (
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            "--leader-elect=false",
        )


def _answers(endpoint: str, context: ssl.SSLContext) -> bool:
    try:
        with urllib.request.urlopen(endpoint, context=context, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
