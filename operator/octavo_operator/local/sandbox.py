"""Where a pod's containers run: the seam, and the plain processes of `octavo up` behind it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Manifest = dict[str, Any]

# A pod starts with empty caches; a person's own have the models that were downloaded before.
CACHES = ("HOME", "HF_HOME", "TRITON_CACHE_DIR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A process as the operating system is to start it; user and group None keep the caller's."""

    argv: list[str]
    env: dict[str, str]
    cwd: str | None = None
    user: int | None = None
    group: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """`source` (a folder, or the file of the termination message) seen at `path` in a container."""

    path: str
    source: Path
    read_only: bool = False


class Sandbox(Protocol):
    """An explicit subclass inherits the two methods at the end; the first three are its own."""

    async def create(self, pod: Manifest) -> str:
        """Prepares the pod's surroundings and returns its IP; the volumes are not there yet."""
        ...

    def wrap(
        self,
        pod: Manifest,
        container: Manifest,
        argv: list[str],
        env: dict[str, str],
        mounts: Sequence[Mount],
    ) -> Launch:
        """How to start `argv` in that container; also used for exec probes and hooks.

        `env` is what the manifest says, nothing of this machine's; the last of `mounts` is the
        file of the termination message at the container's terminationMessagePath.
        """
        ...

    async def destroy(self, pod: Manifest) -> None:
        """Undoes `create`; called once after the last process ended, also after a failed create."""
        ...

    def port(self, pod: Manifest, number: int) -> int:
        """The port, at the address `create` returned, on which container port `number` listens."""
        return number

    def volume_folder(self, pod: Manifest, volume: Manifest) -> Path | None:
        """A folder for a volume that the runner cannot make itself (claim, image, host path)."""
        return None


class LocalSandbox(Sandbox):
    """Plain processes of this user at 127.0.0.1, with this shell's environment as the image's.

    Paths of mounts and of `volumes` (container path -> folder) are rewritten in commands, arguments
    and environment; container ports that are taken move to free ones; caches are this user's. One
    instance serves all pods of a process, so that two of them never get one port.
    """

    def __init__(
        self, volumes: Mapping[str, Path] | None = None, *, host: str = "127.0.0.1",
        first_port: int | None = None,
    ) -> None:  # fmt: skip
        self._volumes = [
            Mount(path=path.rstrip("/") or "/", source=folder)
            for path, folder in (volumes or {}).items()
        ]
        self._host = host
        self._first_port = first_port
        self._ports: dict[str, dict[int, int]] = {}

    async def create(self, pod: Manifest) -> str:
        chosen: dict[int, int] = {}
        self._ports[pod_key(pod)] = chosen
        for container in pod["spec"].get("containers", ()):
            for port in container.get("ports") or ():
                number = int(port["containerPort"])
                wanted = self._first_port or number
                taken = {used for ports in self._ports.values() for used in ports.values()}
                chosen[number] = free_port(self._host, wanted, taken)
        return "127.0.0.1" if self._host == "0.0.0.0" else self._host

    async def destroy(self, pod: Manifest) -> None:
        self._ports.pop(pod_key(pod), None)

    def port(self, pod: Manifest, number: int) -> int:
        return self._ports.get(pod_key(pod), {}).get(number, number)

    def volume_folder(self, pod: Manifest, volume: Manifest) -> Path | None:
        for container in pod["spec"].get("containers", ()):
            for mount in container.get("volumeMounts") or ():
                if mount["name"] == volume["name"]:
                    folder = rewrite_path(mount["mountPath"], self._volumes)
                    return None if folder == mount["mountPath"] else Path(folder)
        return None

    def here(self, path: str) -> str:
        """A path of the image on this machine: moved where a folder of `volumes` stands for it."""
        return rewrite_path(path, self._volumes)

    def wrap(
        self,
        pod: Manifest,
        container: Manifest,
        argv: list[str],
        env: dict[str, str],
        mounts: Sequence[Mount],
    ) -> Launch:
        ports = self._ports.get(pod_key(pod), {})
        paths = [*self._volumes, *mounts]
        argv = rewrite_ports([rewrite_path(word, paths) for word in argv], ports)
        if argv[:2] == ["octavo", "serve"]:
            argv = self._serve_here(argv, ports)
        if argv[0] == "octavo":
            argv = [sys.executable, "-m", "octavo_server.cli", *argv[1:]]
        env = {
            name: rewrite_path(value, paths)
            for name, value in env.items()
            if not (name in CACHES and self._in_empty_folder(pod, container, value))
        }
        for name, value in env.items():
            if name.endswith("PORT") and value.isdecimal():
                env[name] = str(ports.get(int(value), value))
        termination_log = {"OCTAVO_TERMINATION_LOG": str(mounts[-1].source)} if mounts else {}
        cwd = container.get("workingDir")
        return Launch(
            argv=argv,
            # Without a terminal Python would hold its lines back, and `octavo up` shows them.
            env={**os.environ, "PYTHONUNBUFFERED": "1", **env, **termination_log},
            cwd=None if cwd is None else rewrite_path(cwd, paths),
        )

    def _in_empty_folder(self, pod: Manifest, container: Manifest, path: str) -> bool:
        """At or below the mount of an emptyDir, and `volumes` says nothing about it."""
        volumes = pod["spec"].get("volumes") or ()
        empty = {volume["name"] for volume in volumes if "emptyDir" in volume}
        mounts = [
            Mount(path=mount["mountPath"], source=Path("/"))
            for mount in container.get("volumeMounts") or ()
            if mount["name"] in empty
        ]
        return rewrite_path(path, mounts) != path and rewrite_path(path, self._volumes) == path

    def _serve_here(self, argv: list[str], ports: Mapping[int, int]) -> list[str]:
        """A laptop does not serve the whole network unasked, and a moved port must be said."""
        flags = {word.split("=", 1)[0] for word in argv}
        if "--port" not in flags and len(ports) == 1:
            argv = [*argv, "--port", str(next(iter(ports.values())))]
        if "--host" not in flags:
            argv = [*argv, "--host", self._host]
        return argv


def pod_key(pod: Manifest) -> str:
    meta = pod["metadata"]
    return str(meta.get("uid") or f"{meta.get('namespace', 'default')}/{meta['name']}")


def rewrite_path(word: str, mounts: Sequence[Mount]) -> str:
    """`word`, or the value of `--flag=value`, moved if it is at or below a mount's path."""
    flag, equals, value = word.partition("=")
    if not (equals and flag.startswith("-")):
        flag, equals, value = "", "", word
    best: Mount | None = None
    for mount in mounts:
        inside = value == mount.path or value.startswith(mount.path.rstrip("/") + "/")
        if inside and (best is None or len(mount.path) > len(best.path)):
            best = mount
    if best is None:
        return word
    rest = value[len(best.path) :].lstrip("/")
    return flag + equals + str(best.source / rest if rest else best.source)


def rewrite_ports(argv: Sequence[str], ports: Mapping[int, int]) -> list[str]:
    """`--port N` and `--port=N` (any flag that ends in "port") where N is a port that moved."""
    moved = {str(number): str(port) for number, port in ports.items()}
    result: list[str] = []
    for word in argv:
        flag, equals, value = word.partition("=")
        if equals and is_port_flag(flag):
            word = f"{flag}={moved.get(value, value)}"
        elif result and is_port_flag(result[-1]):
            word = moved.get(word, word)
        result.append(word)
    return result


def is_port_flag(word: str) -> bool:
    return word.startswith("-") and (word == "-p" or word.lower().endswith("port"))


def free_port(host: str, wanted: int, taken: set[int]) -> int:
    """`wanted` or the next of the twenty after it that is free, else any that is."""
    for port in [*range(wanted, min(wanted + 20, 65536)), 0]:
        if port in taken:
            continue
        with socket.socket() as probe:
            # As servers do: a port in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(f"no free port on {host}")
