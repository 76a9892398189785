"""The one Secret that all replicas take their certificate from. Who writes it first is right."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from octavo_operator import names
from octavo_operator.kube import Kube, KubeError
from octavo_operator.metrics_api.authority import Issued, renew

ATTEMPTS = 5

log = logging.getLogger(__name__)


class CertificateStore:
    def __init__(
        self,
        kube: Kube,
        namespace: str,
        name: str,
        host_names: Sequence[str],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kube, self._namespace, self._name = kube, namespace, name
        self._host_names, self._clock = host_names, clock

    async def look(self) -> Issued:
        """What the Secret holds, made or renewed where that is due. KubeError, KubeUnreachable."""
        for _ in range(ATTEMPTS):
            live = await self._kube.get("v1", "Secret", self._namespace, self._name)
            issued, why = renew(_decoded(live), self._host_names, self._clock())
            if not why:
                return issued
            try:
                await self._write(live, issued)
            except KubeError as error:
                if error.code != 409:
                    raise
                continue  # another replica was quicker: its certificate is ours, too
            log.info("wrote the Secret %s/%s: %s", self._namespace, self._name, why)
            return issued
        raise KubeError(409, "Conflict", f"the Secret {self._name} changes all the time")

    async def _write(self, live: dict[str, Any] | None, issued: Issued) -> None:
        data = {key: base64.b64encode(value).decode() for key, value in issued.data.items()}
        if live is not None:
            await self._kube.replace(
                {"apiVersion": "v1", "kind": "Secret", **live, "data": data},
            )
            return
        await self._kube.create(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "Opaque",
                "metadata": {
                    "name": self._name,
                    "namespace": self._namespace,
                    "labels": {names.MANAGED_BY_LABEL: "octavo"},
                },
                "data": data,
            }
        )


def _decoded(live: Mapping[str, Any] | None) -> dict[str, bytes]:
    found = {}
    for key, value in ((live or {}).get("data") or {}).items():
        try:
            found[key] = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            continue
    return found
