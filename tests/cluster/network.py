"""Pod networking: one bridge per session, one network namespace and veth pair per pod.

Every pod can listen on the same port, has an address the API server takes as an endpoint (it
refuses loopback), reaches the others and is reached from the host.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .session import Session, namespace_prefix, remove_namespace


class NetworkFailed(OSError):
    """A namespace or link could not be made; the text is what `ip` said."""


@dataclass(frozen=True, slots=True)
class PodAddress:
    namespace: str
    link: str  # the host's end of the veth pair
    ip: str


class PodNetwork:
    """The session's bridge, made by the constructor, and the pods on it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        hosts = list(session.pod_subnet.hosts())
        self.gateway = str(hosts[0])
        self._pool = itertools.cycle([str(host) for host in hosts[1:]])
        self._numbers = itertools.count(1)
        self._pods: dict[str, PodAddress] = {}
        bridge = session.bridge
        prefix = session.pod_subnet.prefixlen
        _batch(
            f"link add {bridge} type bridge forward_delay 0",
            f"addr add {self.gateway}/{prefix} dev {bridge}",
            f"link set {bridge} up",
            # On a host without a default route a Service's address must still lead somewhere.
            f"route add {session.service_subnet} dev {bridge}",
        )
        # From pod to Service address to pod: forwarded by the host, on this bridge only.
        _write_setting(f"/proc/sys/net/ipv4/conf/{bridge}/forwarding", "1")
        # Without it the reply takes the bridge's short cut, past the address translation.
        _write_setting(f"/sys/class/net/{bridge}/bridge/nf_call_iptables", "1")

    async def add(self) -> PodAddress:
        """A fresh namespace with an address of its own. Raises NetworkFailed."""
        in_use = {pod.ip for pod in self._pods.values()}
        if len(in_use) >= self._session.pod_subnet.num_addresses - 3:
            raise NetworkFailed(f"all addresses of {self._session.pod_subnet} are in use")
        ip = next(ip for ip in self._pool if ip not in in_use)
        number = next(self._numbers)
        pod = PodAddress(
            namespace=f"{namespace_prefix(self._session.identity)}{number}",
            link=f"oct{self._session.identity}v{number}",
            ip=ip,
        )
        self._pods[pod.namespace] = pod
        try:
            await asyncio.to_thread(self._make, pod)
        except BaseException:
            await self.remove(pod)
            raise
        return pod

    async def remove(self, pod: PodAddress) -> None:
        """Kills what still runs in the namespace, deletes it; again is no error."""
        await asyncio.to_thread(remove_namespace, pod.namespace)
        # The kernel clears a namespace some time later; the bridge's port goes now.
        await asyncio.to_thread(_ip, "link", "delete", pod.link, check=False)
        self._pods.pop(pod.namespace, None)

    def _make(self, pod: PodAddress) -> None:
        _ip("netns", "add", pod.namespace)
        # An address's MAC is always the same, so that no stale neighbour entry can mislead.
        mac = "0a:58:" + ":".join(f"{int(part):02x}" for part in pod.ip.split("."))
        _batch(
            f"link add {pod.link} type veth peer name eth0 address {mac} netns {pod.namespace}",
            f"link set {pod.link} master {self._session.bridge} up",
        )
        _batch(
            "link set lo up",
            f"addr add {pod.ip}/{self._session.pod_subnet.prefixlen} dev eth0",
            "link set eth0 up",
            f"route add default via {self.gateway}",
            namespace=pod.namespace,
        )


def missing_rights() -> str | None:
    """None if namespaces, links and overlay mounts can be made here, else what is missing."""
    for tool in ("ip", "unshare"):
        if shutil.which(tool) is None:
            return f"the command `{tool}` is missing"
    script = (
        "ip link add octavo0 type bridge && ip link add octavo1 type veth peer name octavo2"
        " && d=$(mktemp -d) && mount -t tmpfs none $d && mkdir $d/u $d/w $d/r"
        " && mount -t overlay none -o lowerdir=/,upperdir=$d/u,workdir=$d/w $d/r; r=$?;"
        " umount -l $d && rmdir $d; exit $r"
    )
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", script], capture_output=True, text=True
    )
    if tried.returncode:
        said = (tried.stderr.strip().splitlines() or ["no reason given"])[-1]
        return f"no right to make namespaces, veth pairs and overlay mounts ({said})"
    name = "octavo-probe"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode and "File exists" not in tried.stderr:
        return f"no right to make named network namespaces ({tried.stderr.strip()})"
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return None


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if check and done.returncode:
        raise NetworkFailed(f"`ip {' '.join(arguments)}`: {done.stderr.strip()}")


def _batch(*lines: str, namespace: str | None = None) -> None:
    command = ["ip", *(["-n", namespace] if namespace else []), "-batch", "-"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    if done.returncode:
        raise NetworkFailed(f"`ip` for {lines[0]!r}: {done.stderr.strip()}")


def _write_setting(path: str, value: str) -> None:
    """Some containers' /proc/sys is read-only: only calls from pod to Service need these."""
    try:
        Path(path).write_text(value)
    except OSError:
        pass
