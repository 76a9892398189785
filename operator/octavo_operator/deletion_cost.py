"""When a service shrinks, the idlest pods go first.

Among pods that are ready, a ReplicaSet deletes those with the lowest deletion cost (KEP-2255), and
knows nothing of load. So the load is read right before the number falls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from octavo_operator.kube import Kube, KubeError
from octavo_operator.pod_load import PodLoad
from octavo_operator.pod_loads import PodLoads, serving_ip

COST_ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"

log = logging.getLogger(__name__)


def shrinks(live: Mapping[str, Any] | None, manifest: Mapping[str, Any]) -> bool:
    """Whether applying the Deployment takes some of its pods, but not all."""
    if live is None:
        return False
    return bool(0 < manifest["spec"]["replicas"] < (live["spec"].get("replicas") or 0))


def decide_costs(names: list[str], loads: Mapping[str, PodLoad]) -> dict[str, int]:
    """By pod name: the requests in flight. One that does not answer may be busy: it goes last."""
    most = max((each.in_flight for each in loads.values()), default=0)
    return {name: loads[name].in_flight if name in loads else most + 1 for name in names}


async def write_costs(kube: Kube, loads: PodLoads, pods: list[dict[str, Any]]) -> None:
    """Onto the serving pods; where it fails any pod may go, as without."""
    serving = [pod for pod in pods if serving_ip(pod)]
    found = await loads.ask(serving)
    if not found:
        return
    costs = decide_costs([pod["metadata"]["name"] for pod in serving], found)
    await asyncio.gather(*(_write(kube, pod, costs[pod["metadata"]["name"]]) for pod in serving))


async def _write(kube: Kube, pod: dict[str, Any], cost: int) -> None:
    before = pod["metadata"].get("annotations") or {}
    if before.get(COST_ANNOTATION, "0") == str(cost):
        return
    try:
        await kube.annotate_pod(pod, {COST_ANNOTATION: str(cost)})
    except KubeError as error:
        where = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        log.info("%s: its deletion cost was not written: %s", where, error)
