"""What a pod refers to outside its manifest, and the error when it is missing."""

from __future__ import annotations

from typing import Protocol


class MissingReference(Exception):
    """A Secret or ConfigMap, or a key of one, that the pod needs is not there (yet)."""


class Resolver(Protocol):
    """None: no such object. Values are bytes: a ConfigMap's `data` in UTF-8, `binaryData` raw."""

    async def get_secret(self, namespace: str, name: str) -> dict[str, bytes] | None: ...

    async def get_config_map(self, namespace: str, name: str) -> dict[str, bytes] | None: ...

    async def get_token(
        self, namespace: str, service_account: str, audience: str | None, seconds: int
    ) -> str:
        """For projected serviceAccountToken volumes; an explicit subclass may leave it out."""
        raise MissingReference("service account tokens cannot be made here")


class NoObjects(Resolver):
    """Where there is no cluster and no file with Secrets."""

    async def get_secret(self, namespace: str, name: str) -> dict[str, bytes] | None:
        return None

    async def get_config_map(self, namespace: str, name: str) -> dict[str, bytes] | None:
        return None


class Objects(Resolver):
    """Secrets and ConfigMaps by (namespace, name), as `octavo up` reads them from files."""

    def __init__(
        self,
        secrets: dict[tuple[str, str], dict[str, bytes]],
        config_maps: dict[tuple[str, str], dict[str, bytes]],
    ) -> None:
        self._secrets = secrets
        self._config_maps = config_maps

    async def get_secret(self, namespace: str, name: str) -> dict[str, bytes] | None:
        return self._secrets.get((namespace, name))

    async def get_config_map(self, namespace: str, name: str) -> dict[str, bytes] | None:
        return self._config_maps.get((namespace, name))
