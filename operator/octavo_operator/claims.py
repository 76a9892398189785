"""Which claims of a pod can be mounted on one node alone: its successor cannot start beside it.

The scheduler does not know: it gives a new pod another node, where its volume never comes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from octavo_operator.kube import Kube, KubeError

_SHARED = {"ReadWriteMany", "ReadOnlyMany"}

log = logging.getLogger(__name__)


class Claims:
    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    async def bound_to_one_node(self, namespace: str, template: Mapping[str, Any]) -> str | None:
        """The name of such a claim of the template; None if there is none, or it is not there yet.

        Of claims that may not be read, those written to count. KubeUnreachable and what other
        KubeError the API server gives.
        """
        for name, read_only in mounted(template):
            try:
                claim = await self._kube.get("v1", "PersistentVolumeClaim", namespace, name)
            except KubeError as error:
                if error.code != 403:
                    raise
                log.info("nobody can tell how many nodes may mount the claim %s: %s", name, error)
                if not read_only:
                    return name
                continue
            if claim is not None and not _SHARED & set(_modes(claim)):
                return name
        return None


def mounted(template: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """The claims of a pod template by name, and whether the pod only reads them."""
    volumes = (template.get("spec") or {}).get("volumes")
    found = []
    for volume in volumes if isinstance(volumes, list) else ():
        claim = volume.get("persistentVolumeClaim") if isinstance(volume, Mapping) else None
        if isinstance(claim, Mapping) and isinstance(claim.get("claimName"), str):
            found.append((claim["claimName"], claim.get("readOnly") is True))
    return found


def _modes(claim: Mapping[str, Any]) -> list[str]:
    """Of the volume that it has, or else those that it asks for."""
    return (claim.get("status") or {}).get("accessModes") or claim["spec"].get("accessModes") or []
