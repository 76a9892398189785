"""One run of the cluster tests: its names, addresses and folder, and the sweep after a crash.

A session's record is a locked file; a record that can be locked belongs to a process that died, and
its namespaces, links, nftables and folder are removed at the next start.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import IO, Any

from .build import cache_folder, locked

SUBNETS = 250


def pod_subnet(number: int) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(f"10.213.{number}.0/24")


def service_subnet(number: int) -> ipaddress.IPv4Network:
    """4,096 addresses from 10.214.0.0 on: a test makes a thousand Services."""
    return ipaddress.IPv4Network(f"10.{214 + number // 16}.{number % 16 * 16}.0/20")


class Session:
    """`identity` is four hex digits that every name on the host carries; `close()` removes all."""

    def __init__(self) -> None:
        records = _records()
        with locked(records / "lock"):
            sweep()
            number = _free_subnet([json.loads(path.read_text()) for path in records.glob("*.json")])
            self.identity = secrets.token_hex(2)
            self.pod_subnet = pod_subnet(number)
            self.service_subnet = service_subnet(number)
            self.folder = Path(tempfile.mkdtemp(prefix="octavo-cluster-"))
            self._path = records / f"{self.identity}.json"
            self._record: dict[str, Any] = {
                "identity": self.identity,
                "subnet": number,
                "folder": str(self.folder),
                "kube_proxy": None,
            }
            self._file = self._path.open("x")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._write()

    def note_kube_proxy(self, nft: Path) -> None:
        """Remembers, for a sweep after a crash, that the host has kube-proxy's nftables."""
        self._record["kube_proxy"] = str(nft)
        self._write()

    @property
    def bridge(self) -> str:
        return bridge_name(self.identity)

    def close(self, *, keep_folder: bool = False) -> None:
        """Removes what is left of the session; all its processes have ended before."""
        if keep_folder:
            self._record["folder"] = ""
        _remove(self._record)
        self._path.unlink(missing_ok=True)
        self._file.close()

    def _write(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        json.dump(self._record, self._file)
        self._file.flush()


def bridge_name(identity: str) -> str:
    return f"oct{identity}br"


def namespace_prefix(identity: str) -> str:
    return f"octavo-{identity}-"


def sweep() -> None:
    """Removes what sessions left whose process is gone; their records' lock is free."""
    for path in _records().glob("*.json"):
        with path.open() as file:
            if _try_lock(file):
                try:
                    record = json.load(file)
                except ValueError:  # it died while writing its first record: nothing was made yet
                    record = {}
                if record:
                    _remove(record)
                path.unlink(missing_ok=True)


def live_kube_proxy() -> bool:
    """Whether a running session has kube-proxy's tables in the host's nftables."""
    for path in _records().glob("*.json"):
        try:
            if json.loads(path.read_text()).get("kube_proxy"):
                return True
        except (OSError, ValueError):
            continue
    return False


def remove_namespace(name: str) -> None:
    """Kills what still runs in a network namespace and deletes it; its veth goes with it."""
    for pid in _ip("netns", "pids", name).stdout.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue
    _ip("netns", "delete", name)


def remove_kube_proxy_tables(nft: Path) -> None:
    for family in ("ip", "ip6"):
        subprocess.run([nft, "delete", "table", family, "kube-proxy"], capture_output=True)


def _remove(record: dict[str, Any]) -> None:
    identity = record["identity"]
    for line in _ip("netns", "list").stdout.splitlines():
        name = line.split(" ", 1)[0]
        if name.startswith(namespace_prefix(identity)):
            remove_namespace(name)
    _ip("link", "delete", bridge_name(identity))
    if record["kube_proxy"]:
        remove_kube_proxy_tables(Path(record["kube_proxy"]))
    if record["folder"]:
        shutil.rmtree(record["folder"], ignore_errors=True)


def _records() -> Path:
    folder = cache_folder() / "sessions"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _free_subnet(records: list[dict[str, Any]]) -> int:
    """The first number whose two subnets no session and no route of this host uses."""
    taken = {record["subnet"] for record in records}
    routes = json.loads(_ip("-json", "route", "show", "table", "all").stdout or "[]")
    used = []
    for route in routes:
        try:
            used.append(ipaddress.IPv4Network(route["dst"]))
        except ValueError:  # "default", IPv6
            continue
    for number in range(SUBNETS):
        subnets = [pod_subnet(number), service_subnet(number)]
        if number not in taken and not any(s.overlaps(u) for s in subnets for u in used):
            return number
    raise RuntimeError("no free subnet for pods below 10.213.0.0/16")


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)
