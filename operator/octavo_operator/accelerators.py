"""The GPU memory that nodes say they have, by the labels of GPU feature discovery."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from octavo_operator import names
from octavo_operator.kube import Kube, KubeError, KubeUnreachable

MEMORY_LABEL = names.memory_label(names.GPU_RESOURCE)

KEPT_SECONDS = 60.0


log = logging.getLogger(__name__)


class Accelerators:
    """Nodes as last listed, at most a minute ago."""

    def __init__(
        self,
        kube: Kube,
        clock: Callable[[], float] = time.monotonic,
        gpu_resource: str = names.GPU_RESOURCE,
    ) -> None:
        self._kube, self._clock, self._label = kube, clock, names.memory_label(gpu_resource)
        self._labels: list[Mapping[str, str]] = []
        self._until = 0.0
        self._told = False
        self._listing = asyncio.Lock()

    async def mebibytes(self, pod_spec: Mapping[str, Any]) -> tuple[int, ...]:
        """Of a GPU, of each kind of node that a pod of this spec may come to by its nodeSelector.

        () where no node says, or we may not ask. No pass fails for want of it.
        """
        async with self._listing:  # passes that come meanwhile wait for the same answer
            if self._clock() >= self._until:
                self._labels = await self._list()
                self._until = self._clock() + KEPT_SECONDS
        selector = pod_spec.get("nodeSelector") or {}
        if not isinstance(selector, Mapping):
            return ()  # the API server's to refuse, with the path
        return found_in(
            (labels for labels in self._labels if selector.items() <= labels.items()), self._label
        )

    async def _list(self) -> list[Mapping[str, str]]:
        try:
            nodes = await self._kube.list("v1", "Node", None, self._label)
        except KubeError as error:
            if error.code == 403:  # a namespaced install
                if not self._told:
                    log.warning("FitsAccelerator stays Unknown: %s", error)
                self._told = True
                return []
            log.warning("nodes are as before: %s", error)
            return self._labels
        except KubeUnreachable as error:
            log.warning("nodes are as before: %s", error)
            return self._labels
        return [node["metadata"]["labels"] for node in nodes]


def found_in(nodes: Any, label: str = MEMORY_LABEL) -> tuple[int, ...]:
    """Those amounts of the nodes' labels that are numbers, smallest first."""
    amounts = {labels.get(label, "") for labels in nodes}
    return tuple(sorted(int(each) for each in amounts if each.isdecimal() and int(each) > 0))
