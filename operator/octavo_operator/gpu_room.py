"""Is a GPU spare for one more pod? Nodes' allocatable GPUs less what the pods on them asked for.

GPUs, node selectors and taints only: the rest is the scheduler's to judge, this decides how a
rollout goes about it.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from octavo_operator.kube import Kube, KubeError
from octavo_operator.quantity import parse_quantity

MOST_NODES = 100
"""Nodes looked into, each of them a request: in a larger cluster a rollout plans without."""

log = logging.getLogger(__name__)


class Room(enum.Enum):
    """For one more pod of a service."""

    NOW = "now"
    AFTER = "after one of its own pods is gone"
    NONE = "on no node, even then"
    UNKNOWN = "unknown"


class GpuRoom:
    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    async def look(self, template: Mapping[str, Any], own: Iterable[str]) -> Room:
        """Room for a pod of `template`; `own` are the names of the service's pods, as
        "namespace/name".

        UNKNOWN where the operator may not look (a namespaced install), or has too much to look at.
        KubeUnreachable and what other KubeError the API server gives.
        """
        own = set(own)
        try:
            pod_spec = template["spec"]
            resource, wanted = gpus_of(pod_spec)
            if not wanted:
                return Room.NOW
            # NOTE: the template is not applied yet, so that nobody has said that it is valid.
            nodes = [
                node
                for node in await self._kube.list("v1", "Node", None)
                if may_take(node, pod_spec) and _allocatable(node, resource) >= wanted
            ]
            if len(nodes) > MOST_NODES:
                return Room.UNKNOWN
            found = Room.NONE
            for node in nodes:
                field = f"spec.nodeName={node['metadata']['name']}"
                pods = await self._kube.list("v1", "Pod", None, field_selector=field)
                free = _allocatable(node, resource) - held_by(pods, resource)
                if free >= wanted:
                    return Room.NOW
                ours = (pod for pod in pods if pod_name(pod) in own)
                if free + max((held_by([pod], resource) for pod in ours), default=0) >= wanted:
                    found = Room.AFTER
            return found
        except KubeError as error:
            if error.code != 403:
                raise
            return Room.UNKNOWN
        except (AttributeError, TypeError, ValueError):
            return Room.UNKNOWN  # a template that the API server will refuse, with the path


def gpus_of(pod_spec: Mapping[str, Any]) -> tuple[str, int]:
    """The resource name of a pod's GPUs, and how many; ("", 0) of a pod without."""
    for container in pod_spec.get("containers") or ():
        limits = (container.get("resources") or {}).get("limits") or {}
        for name, amount in limits.items():
            if "/" in name and ("gpu" in name or "/mig-" in name):
                return name, int(parse_quantity(amount))
    return "", 0


def may_take(node: Mapping[str, Any], pod_spec: Mapping[str, Any]) -> bool:
    """Whether the node takes new pods, and this one by its selector and tolerations."""
    spec, labels = node.get("spec") or {}, node["metadata"].get("labels") or {}
    if spec.get("unschedulable"):
        return False
    selector = pod_spec.get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in selector.items()):
        return False
    tolerations = pod_spec.get("tolerations") or ()
    return all(
        any(_tolerates(each, taint) for each in tolerations)
        for taint in spec.get("taints") or ()
        if taint.get("effect") in ("NoSchedule", "NoExecute")
    )


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if not toleration.get("key"):
        return toleration.get("operator") == "Exists"
    if toleration["key"] != taint.get("key"):
        return False
    return toleration.get("operator") == "Exists" or (
        (toleration.get("value") or "") == (taint.get("value") or "")
    )


def held_by(pods: Iterable[Mapping[str, Any]], resource: str) -> int:
    """GPUs that pods hold which have not ended."""
    total = 0
    for pod in pods:
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            continue
        spec = pod["spec"]
        first = [_limit(each, resource) for each in spec.get("initContainers") or ()]
        then = sum(_limit(each, resource) for each in spec.get("containers") or ())
        total += max([then, *first])
    return total


def _limit(container: Mapping[str, Any], resource: str) -> int:
    limits = (container.get("resources") or {}).get("limits") or {}
    return int(parse_quantity(limits[resource])) if resource in limits else 0


def _allocatable(node: Mapping[str, Any], resource: str) -> int:
    found = ((node.get("status") or {}).get("allocatable") or {}).get(resource)
    return 0 if found is None else int(parse_quantity(found))


def pod_name(pod: Mapping[str, Any]) -> str:
    """Among those of all namespaces."""
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
