"""The node agent's sandbox: a pod is a network namespace, a container has its mounts to itself."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from octavo_operator.local.sandbox import Launch, Manifest, Mount, Sandbox, pod_key

from .images import Image, find_image
from .network import PodAddress, PodNetwork

IMAGE_USER = 65532
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
ENTER = Path(__file__).with_name("enter.py")


class NamespaceSandbox(Sandbox):
    """Serves all real pods of a node agent; `folder` holds what the containers' entry needs."""

    def __init__(self, network: PodNetwork, images: Mapping[str, Image], folder: Path) -> None:
        self._network = network
        self._images = images
        self._folder = folder
        self._addresses: dict[str, PodAddress] = {}
        self._ip_command = shutil.which("ip") or "/sbin/ip"

    async def create(self, pod: Manifest) -> str:
        address = await self._network.add()
        self._addresses[pod_key(pod)] = address
        return address.ip

    def wrap(
        self,
        pod: Manifest,
        container: Manifest,
        argv: list[str],
        env: dict[str, str],
        mounts: Sequence[Mount],
    ) -> Launch:
        image = find_image(self._images, container["image"]) or Image()
        folder = self._folder / pod_key(pod) / container["name"]
        scratch = folder / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        content = [[path, str(source), True] for path, source in image.folders.items()]
        own = [[mount.path, str(mount.source), mount.read_only] for mount in mounts]
        user, group = _identity(pod, container)
        context = container.get("securityContext") or {}
        groups = _groups(pod)
        if mounts and not (folder / "pid").exists():
            _share(mounts, groups, user)
        spec = {
            "scratch": str(scratch),
            "pid_file": str(folder / "pid"),
            "mounts": content + own,
            "user": user,
            "group": group,
            "groups": groups,
            "cwd": container.get("workingDir"),
            "read_only_root": bool(context.get("readOnlyRootFilesystem")),
            "no_new_privileges": context.get("allowPrivilegeEscalation") is False,
            "readable": [os.path.realpath(sys.executable), sys.executable, str(ENTER)],
        }
        path = folder / "spec.json"
        path.write_text(json.dumps(spec))
        namespace = self._addresses[pod_key(pod)].namespace
        inside = [sys.executable, "-I", "-S", str(ENTER), str(path), *argv]
        return Launch(
            argv=[self._ip_command, "netns", "exec", namespace, *inside],
            env={"HOSTNAME": str(pod["metadata"]["name"]), **image.environment, **env},
        )

    async def destroy(self, pod: Manifest) -> None:
        address = self._addresses.pop(pod_key(pod), None)
        if address is not None:
            await self._network.remove(address)
        shutil.rmtree(self._folder / pod_key(pod), ignore_errors=True)


def _groups(pod: Manifest) -> list[int]:
    context = pod["spec"].get("securityContext") or {}
    own = [context["fsGroup"]] if context.get("fsGroup") is not None else []
    return [*own, *(context.get("supplementalGroups") or ())]


def _share(mounts: Sequence[Mount], groups: list[int], user: int | None) -> None:
    """As a kubelet does: any user may leave a message, the pod's user owns its account's token, and
    fsGroup owns the volumes' content.
    """
    mounts[-1].source.chmod(0o666)
    if user is not None:
        for mount in mounts[:-1]:
            if mount.path == ACCOUNT:
                os.chown(mount.source / "token", user, -1)
    if not groups:
        return
    for mount in mounts[:-1]:
        for folder, _, files in os.walk(mount.source):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                os.chown(path, -1, groups[0])
                os.chmod(path, os.stat(path).st_mode | (0o070 if path == folder else 0o040))


def _identity(pod: Manifest, container: Manifest) -> tuple[int | None, int | None]:
    """User and group of the container's process: its own securityContext over the pod's."""
    context = {
        **(pod["spec"].get("securityContext") or {}),
        **(container.get("securityContext") or {}),
    }
    user, group = context.get("runAsUser"), context.get("runAsGroup")
    if user is None and context.get("runAsNonRoot"):
        user = IMAGE_USER  # what the image's own USER line would say
    return user, group if group is not None or user is None else 0
