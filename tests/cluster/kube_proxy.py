"""kube-proxy on the host, in its nftables mode, so that a Service's own address is what tests call.

It needs root, a kernel with nf_tables and the `nft` command: the host's, or Debian's packages
unpacked into the cache (nothing is installed). Where that fails, tests call endpoint addresses.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from .build import cache_folder, locked
from .control_plane import ControlPlane
from .processes import Daemon, DaemonFailed, free_ports
from .session import Session, live_kube_proxy, remove_kube_proxy_tables

START_SECONDS = 15.0
NODE_NAME = "octavo-test-host"  # kube-proxy waits for a Node object of its name


class KubeProxyUnavailable(Exception):
    """Why there is none, in one line."""


class KubeProxy:
    """Runs from the constructor until `stop()`, which also removes its rules."""

    def __init__(self, session: Session, plane: ControlPlane) -> None:
        """A Node named NODE_NAME exists. Raises KubeProxyUnavailable."""
        binary = plane.assets / "kube-proxy"
        if not binary.is_file():
            raise KubeProxyUnavailable(f"no kube-proxy in {plane.assets}")
        self._nft = find_nft()
        _check_kernel(self._nft)
        health, metrics = free_ports(2)
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "bindAddress": "127.0.0.1",
            "healthzBindAddress": f"127.0.0.1:{health}",
            "metricsBindAddress": f"127.0.0.1:{metrics}",
            "hostnameOverride": NODE_NAME,
            "clientConnection": {
                "kubeconfig": str(plane.kubeconfig_for("kube-proxy", "system:kube-proxy"))
            },
            "detectLocalMode": "BridgeInterface",
            "detectLocal": {"bridgeInterface": session.bridge},
            "nodePortAddresses": ["127.0.0.0/8"],
            "nftables": {"minSyncPeriod": "50ms", "syncPeriod": "30s"},
            # 0: the host's settings stay as they are.
            "conntrack": {
                "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
            "oomScoreAdj": 0,
        }  # fmt: skip
        path = plane.folder / "kube-proxy.json"
        path.write_text(json.dumps(config))
        with locked(cache_folder() / "kube-proxy.lock"):
            if live_kube_proxy():
                raise KubeProxyUnavailable("another test session has the host's kube-proxy tables")
            if _has_tables(self._nft):
                raise KubeProxyUnavailable("this host has a kube-proxy of its own")
            session.note_kube_proxy(self._nft)
        environment = {**os.environ, "PATH": f"{self._nft.parent}:{os.environ['PATH']}"}
        self._daemon = Daemon(
            "kube-proxy", [str(binary), f"--config={path}"], plane.folder, environment
        )
        try:
            self._wait_for_tables()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._daemon.stop()
        remove_kube_proxy_tables(self._nft)

    def _wait_for_tables(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _has_tables(self._nft):
            try:
                self._daemon.raise_if_dead()
            except DaemonFailed as error:
                raise KubeProxyUnavailable(str(error)) from error
            if time.monotonic() > deadline:
                tail = self._daemon.log_tail(5)
                raise KubeProxyUnavailable(f"no rules after {START_SECONDS:.0f} s:\n{tail}")
            time.sleep(0.05)


def find_nft() -> Path:
    """The host's `nft`, else Debian's unpacked into the cache. Raises KubeProxyUnavailable."""
    found = shutil.which("nft")
    if found:
        return Path(found)
    folder = cache_folder() / "nftables"
    command = folder / "bin" / "nft"
    with locked(cache_folder() / "nftables.lock"):
        if not command.is_file():
            _unpack_nft(folder)
    return command


def _unpack_nft(folder: Path) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise KubeProxyUnavailable("no command `nft`, and no apt-get to fetch it")
    partial = Path(tempfile.mkdtemp(prefix=".nftables-", dir=folder.parent))
    try:
        (partial / "packages" / "partial").mkdir(parents=True)
        fetch = [
            "apt-get", "install", "--yes", "--quiet", "--download-only", "--no-install-recommends",
            "-o", f"Dir::Cache::archives={partial / 'packages'}", "nftables",
        ]  # fmt: skip
        done = subprocess.run(fetch, capture_output=True, text=True)
        if done.returncode:  # a fresh machine has no package lists
            subprocess.run(["apt-get", "update", "--quiet"], capture_output=True)
            done = subprocess.run(fetch, capture_output=True, text=True)
        packages = sorted((partial / "packages").glob("*.deb"))
        if done.returncode or not packages:
            said = (done.stderr.strip().splitlines() or ["nothing fetched"])[-1]
            raise KubeProxyUnavailable(f"no command `nft`, and apt-get: {said}")
        for package in packages:
            subprocess.run(["dpkg", "-x", package, partial / "root"], check=True)
        libraries = next((partial / "root").rglob("libnftables.so.1")).parent
        library_path = folder / libraries.relative_to(partial)
        (partial / "bin").mkdir()
        wrapper = partial / "bin" / "nft"
        wrapper.write_text(
            f'#!/bin/sh\nLD_LIBRARY_PATH={library_path} exec {folder}/root/usr/sbin/nft "$@"\n'
        )
        wrapper.chmod(0o755)
        partial.chmod(0o755)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_kernel(nft: Path) -> None:
    tried = subprocess.run([nft, "list", "tables"], capture_output=True, text=True)
    if tried.returncode:
        raise KubeProxyUnavailable(f"nftables do not work here: {tried.stderr.strip()}")


def _has_tables(nft: Path) -> bool:
    listed = subprocess.run([nft, "list", "tables"], capture_output=True, text=True)
    return "table ip kube-proxy" in listed.stdout.splitlines()
