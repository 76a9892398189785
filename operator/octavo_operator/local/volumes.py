"""A pod's volumes as folders: emptyDir, Secret, ConfigMap, downward API, projections of these."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo_operator.local.environment import field_value, resource_value
from octavo_operator.local.resolver import MissingReference, Resolver
from octavo_operator.local.sandbox import Manifest, Mount, Sandbox

Files = dict[str, tuple[bytes, int]]  # relative path -> (content, mode)
MEMORY_FOLDER = Path("/dev/shm")
DEFAULT_MODE = 0o644
TOKEN_SECONDS = 3600
MADE_HERE = ("emptyDir", "secret", "configMap", "downwardAPI", "projected")


class Volumes:
    """All volumes of one pod below one folder, which `remove` deletes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sources: dict[str, Path] = {}
        self._temporary: list[Path] = []

    async def prepare(
        self, pod: Manifest, resolver: Resolver, sandbox: Sandbox, *, pod_ip: str, host_ip: str
    ) -> None:
        """Makes what is not there yet; raises MissingReference, and may then be called again."""
        for volume in pod["spec"].get("volumes") or ():
            name = str(volume["name"])
            if name in self._sources:
                continue
            kind = next((kind for kind in MADE_HERE if kind in volume), None)
            if kind is None:
                given = sandbox.volume_folder(pod, volume)
                if given is None:
                    raise MissingReference(f'volume "{name}" is of a kind that this node lacks')
                self._sources[name] = given
                continue
            folder = self._folder / name
            if kind == "emptyDir":
                folder = self._empty_folder(name, (volume[kind] or {}).get("medium") or "")
            else:
                source = {kind: volume[kind]}
                files = await source_files(pod, source, resolver, pod_ip=pod_ip, host_ip=host_ip)
                security = pod["spec"].get("securityContext") or {}
                write_files(folder, files, security.get("fsGroup"))
            self._sources[name] = folder

    def _empty_folder(self, name: str, medium: str) -> Path:
        folder = self._folder / name
        if medium == "Memory" and MEMORY_FOLDER.is_dir():
            folder = Path(tempfile.mkdtemp(prefix="octavo-", dir=MEMORY_FOLDER))
            self._temporary.append(folder)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        return folder

    def mounts(self, container: Manifest) -> list[Mount]:
        """In the manifest's order; files of Secrets and the like are read-only by their mode."""
        result: list[Mount] = []
        for mount in container.get("volumeMounts") or ():
            source = self._sources[mount["name"]]
            if sub_path := mount.get("subPath"):
                source = source / sub_path
                if not source.exists():
                    source.mkdir(parents=True)
            read_only = bool(mount.get("readOnly"))
            result.append(Mount(path=mount["mountPath"], source=source, read_only=read_only))
        return result

    def remove(self) -> None:
        for folder in (self._folder, *self._temporary):
            shutil.rmtree(folder, ignore_errors=True)


async def source_files(
    pod: Manifest, volume: Mapping[str, Any], resolver: Resolver, *, pod_ip: str, host_ip: str
) -> Files:
    """What a volume's source (or one source of a projection) puts where."""
    namespace = str(pod["metadata"].get("namespace", "default"))
    files: Files = {}
    if "projected" in volume:
        mode = volume["projected"].get("defaultMode")
        for source in volume["projected"].get("sources") or ():
            kind = next(iter(source))
            entry = {kind: {"defaultMode": mode, **source[kind]}} if mode else source
            files |= await source_files(pod, entry, resolver, pod_ip=pod_ip, host_ip=host_ip)
        return files
    if "serviceAccountToken" in volume:
        source = volume["serviceAccountToken"]
        account = str(pod["spec"].get("serviceAccountName") or "default")
        seconds = int(source.get("expirationSeconds") or TOKEN_SECONDS)
        token = await resolver.get_token(namespace, account, source.get("audience"), seconds)
        return {source["path"]: (token.encode(), 0o600)}
    if "downwardAPI" in volume:
        source = volume["downwardAPI"] or {}
        for item in source.get("items") or ():
            if "fieldRef" in item:
                text = field_value(pod, item["fieldRef"]["fieldPath"], pod_ip, host_ip)
            else:
                text = resource_value(pod, {}, item["resourceFieldRef"])
            files[item["path"]] = (text.encode(), _mode(item, source))
        return files
    secret = "secret" in volume
    source = volume["secret"] if secret else volume["configMap"]
    name = str(source.get("secretName") or source.get("name"))
    get = resolver.get_secret if secret else resolver.get_config_map
    data = await get(namespace, name)
    what = "secret" if secret else "configmap"
    if data is None:
        if source.get("optional"):
            return {}
        raise MissingReference(f'{what} "{name}" not found')
    if not source.get("items"):
        return {key: (value, _mode({}, source)) for key, value in data.items()}
    for item in source["items"]:
        if item["key"] in data:
            files[item["path"]] = (data[item["key"]], _mode(item, source))
        elif not source.get("optional"):
            raise MissingReference(f'{what} "{name}" has no key "{item["key"]}"')
    return files


def _mode(item: Mapping[str, Any], source: Mapping[str, Any]) -> int:
    return int(item.get("mode") or source.get("defaultMode") or DEFAULT_MODE)


def write_files(folder: Path, files: Files, group: int | None = None) -> None:
    """Raises ValueError for a path that would leave the folder.

    `group` is the pod's fsGroup: it may read the files, where this process may give them to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path, (content, mode) in files.items():
        if path.startswith("/") or ".." in Path(path).parts:
            raise ValueError(f"volume path {path!r} leaves its volume")
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        if group is not None and os.geteuid() == 0:
            os.chown(file, -1, group)
            mode |= 0o440
        file.chmod(mode)
