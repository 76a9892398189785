"""What a pass knows of the cluster when it decides the status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo_operator import conditions, names
from octavo_operator.conditions import WORKLOAD_READY, Problem
from octavo_operator.pod_problems import find_problem


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """A pod that has not ended; `revision` is that of the settings it was rendered from."""

    name: str
    revision: str
    ready: bool
    problem: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`revision` and `cause` are those of the Deployment as it is now; "" if there is none.

    `problem` concerns the whole service (a refused apply, a name that is taken, refused pods) and
    outweighs those of single pods. `ending` counts pods that are being deleted.
    """

    wanted: int = 0
    revision: str = ""
    cause: str = ""
    pods: tuple[PodFacts, ...] = ()
    ending: int = 0
    problem: Problem | None = None

    @property
    def current(self) -> tuple[PodFacts, ...]:
        return tuple(pod for pod in self.pods if pod.revision == self.revision)

    @property
    def outdated(self) -> tuple[PodFacts, ...]:
        return tuple(pod for pod in self.pods if pod.revision != self.revision)


def read_pods(pods: list[dict[str, Any]]) -> tuple[PodFacts, ...]:
    """The pods that count: neither being deleted nor done, sorted by name.

    A failed pod (evicted, say) is left out: its ReplicaSet has made another.
    """
    living = [
        pod
        for pod in pods
        if not pod["metadata"].get("deletionTimestamp")
        and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
    ]
    return tuple(sorted((_read_pod(pod) for pod in living), key=lambda pod: pod.name))


def count_ending(pods: list[dict[str, Any]]) -> int:
    """Pods that are being deleted: they may drain for minutes, and hold their GPUs that long."""
    return sum(1 for pod in pods if pod["metadata"].get("deletionTimestamp"))


def _read_pod(pod: Mapping[str, Any]) -> PodFacts:
    metadata = pod["metadata"]
    ready = any(
        each.get("type") == "Ready" and each.get("status") == "True"
        for each in (pod.get("status") or {}).get("conditions") or []
    )
    return PodFacts(
        name=metadata["name"],
        revision=(metadata.get("annotations") or {}).get(names.REVISION_ANNOTATION, ""),
        ready=ready,
        problem=None if ready else find_problem(pod),
    )


def read_deployment_problem(deployment: Mapping[str, Any] | None) -> Problem | None:
    """Pods that the API server refuses (quota, policy), or a rollout that stands still."""
    status = (deployment or {}).get("status") or {}
    for each in status.get("conditions") or []:
        if each.get("type") == "ReplicaFailure" and each.get("status") == "True":
            return Problem(WORKLOAD_READY, conditions.PODS_REFUSED, each.get("message", ""))
    return None
