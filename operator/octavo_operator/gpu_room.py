"""Is there room for one more GPU pod? What nodes have, less what the pods on them asked for.

An estimate: the scheduler has the last word, this decides how a rollout goes about it.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping
from typing import Any

from octavo_operator.kube import Kube, KubeError
from octavo_operator.node_fit import allocatable_of, has_room, may_take
from octavo_operator.pod_requests import gpus_of, held_by, pod_name

MOST_NODES = 100
"""Nodes looked into, each of them a request: first those that the service's own pods are on. Of a
larger cluster's others nobody knows whether one has a GPU spare.
"""

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

    async def look(self, template: Mapping[str, Any], own: Mapping[str, str]) -> Room:
        """Room for a pod of `template`; `own` has the service's pods, "namespace/name", and the
        node that each is on ("": none yet).

        UNKNOWN where the operator may not look (a namespaced install), or has too much to look at.
        KubeUnreachable and what other KubeError the API server gives.
        """
        try:
            pod_spec = template["spec"]
            if not gpus_of(pod_spec)[1]:
                return Room.NOW
            wanted = held_by([template])
            # NOTE: the template is not applied yet, so that nobody has said that it is valid.
            nodes = [
                node
                for node in await self._kube.list("v1", "Node", None)
                if may_take(node, pod_spec) and has_room(allocatable_of(node), {}, wanted)
            ]
            nodes.sort(key=lambda node: node["metadata"]["name"] not in own.values())
            found = Room.NONE if len(nodes) <= MOST_NODES else Room.UNKNOWN
            unbound = await self._kube.list("v1", "Pod", None, field_selector="spec.nodeName=")
            waiting = [
                pod
                for pod in unbound
                if pod_name(pod) not in own
                and not pod["metadata"].get("deletionTimestamp")
                and not pod["spec"].get("schedulingGates")
            ]
            for node in nodes[:MOST_NODES]:
                field = f"spec.nodeName={node['metadata']['name']}"
                pods = await self._kube.list("v1", "Pod", None, field_selector=field)
                all_of_it = allocatable_of(node)
                # A pod that has no node yet will take what is free now: its elder's, say.
                coming = [
                    pod
                    for pod in waiting
                    if may_take(node, pod["spec"]) and has_room(all_of_it, {}, held_by([pod]))
                ]
                if has_room(all_of_it, held_by([*pods, *coming]), wanted):
                    return Room.NOW
                if any(
                    has_room(all_of_it, held_by(each for each in pods if each is not gone), wanted)
                    for gone in pods
                    if pod_name(gone) in own
                ) or has_room(all_of_it, held_by(pods), wanted):
                    found = Room.AFTER
            return found
        except KubeError as error:
            if error.code != 403:
                raise
            return Room.UNKNOWN
        except (AttributeError, KeyError, TypeError, ValueError):
            return Room.UNKNOWN  # a template that the API server will refuse, with the path
