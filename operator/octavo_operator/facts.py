"""What a pass knows of the cluster when it decides the status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from octavo_operator import conditions, names
from octavo_operator.conditions import WORKLOAD_READY, Condition, Problem
from octavo_operator.downloads import is_fetching
from octavo_operator.pod_problems import count_restarts, find_problem


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """A pod that has not ended; `revision` is that of the settings it was rendered from.

    `restarts` are those of the container whose end is the problem. `created` is RFC 3339, as are
    `scheduled`, when it got its node, and `prepared`, when its server's turn came ("" until then).
    `fetching`: its first container downloads the model.
    """

    name: str
    revision: str
    ready: bool
    problem: Problem | None = None
    restarts: int = 0
    created: str = ""
    scheduled: str = ""
    prepared: str = ""
    fetching: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """`revision` and `cause` are those of the Deployment as it is now; "" if there is none.

    `waiting` is what an upgrade that nobody asked for would change, `plan` how pods are replaced.

    `problem` concerns the whole service (a refused apply, a name that is taken, refused pods) and
    outweighs those of single pods; a rollout that stands still (Stalled) does not. `ending` counts
    pods that are being deleted. `failed` is what the newest pod failed of that the kubelet gave up.
    `download` says how far the pods are that fetch the model, "" if they do not tell.
    """

    wanted: int = 0
    revision: str = ""
    cause: str = ""
    waiting: str = ""
    plan: str = ""
    pods: tuple[PodFacts, ...] = ()
    ending: int = 0
    problem: Problem | None = None
    failed: Problem | None = None
    fit: Condition | None = None
    download: str = ""
    routing: Condition | None = None
    autoscaling: Condition | None = None

    @property
    def refusal(self) -> Problem | None:
        """`problem`, if it outweighs those of single pods."""
        stalled = self.problem is not None and self.problem.reason == conditions.STALLED
        return None if stalled else self.problem

    @property
    def current(self) -> tuple[PodFacts, ...]:
        return tuple(pod for pod in self.pods if pod.revision == self.revision)

    @property
    def outdated(self) -> tuple[PodFacts, ...]:
        return tuple(pod for pod in self.pods if pod.revision != self.revision)


def with_download(facts: Facts, told: str) -> Facts:
    """`told` says how far the pods are. What cut a download off that gets on again is history; it
    may be so for the rest of an hour.
    """
    if not told:
        return facts
    pods = tuple(replace(pod, problem=None) if pod.fetching else pod for pod in facts.pods)
    return replace(facts, pods=pods, download=told)


def pods_of(name: str, pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that a ReplicaSet of the Deployment `name` controls.

    Others may carry our label (a debugging copy, say): they serve, but are not ours to count.
    """
    return [
        pod
        for pod in pods
        if any(
            each.get("controller")
            and each.get("kind") == "ReplicaSet"
            and each["name"].rpartition("-")[0] == name
            for each in pod["metadata"].get("ownerReferences") or []
        )
    ]


def read_failed(pods: list[dict[str, Any]], revision: str) -> Problem | None:
    """What the newest failed pod of that revision failed of, if no pod of it lives.

    Each has been replaced by then, but if they only ever fail (no healthy GPU, eviction) nothing
    else says why.
    """
    failed = [
        pod
        for pod in pods
        if _revision(pod) == revision
        and not pod["metadata"].get("deletionTimestamp")
        and (pod.get("status") or {}).get("phase") == "Failed"
    ]
    if not failed or any(pod.revision == revision for pod in read_pods(pods)):
        return None
    return find_problem(max(failed, key=lambda pod: pod["metadata"].get("creationTimestamp") or ""))


def read_pods(pods: list[dict[str, Any]]) -> tuple[PodFacts, ...]:
    """The pods that count: neither being deleted nor done, sorted by name.

    A failed pod (evicted, say) is left out: its ReplicaSet has made another (see `read_failed`).
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
    told = {each.get("type"): each for each in (pod.get("status") or {}).get("conditions") or []}
    ready = told.get("Ready", {}).get("status") == "True"

    def since(name: str) -> str:
        found = told.get(name, {})
        return str(found.get("lastTransitionTime") or "") if found.get("status") == "True" else ""

    return PodFacts(
        name=metadata["name"],
        revision=_revision(pod),
        ready=ready,
        problem=None if ready else find_problem(pod),
        restarts=count_restarts(pod),
        created=metadata.get("creationTimestamp") or "",
        scheduled=since("PodScheduled"),
        prepared=since("Initialized"),
        fetching=is_fetching(pod),
    )


def _revision(pod: Mapping[str, Any]) -> str:
    return str((pod["metadata"].get("annotations") or {}).get(names.REVISION_ANNOTATION, ""))


def read_deployment_problem(
    deployment: Mapping[str, Any] | None, current: Iterable[PodFacts] = (), now: str = ""
) -> Problem | None:
    """Pods that the API server refuses (quota, policy), or a rollout that stands still.

    `current` are the pods of its present template: Kubernetes counts the time that one downloads
    its model, or waits for a node, as if nothing happened. Their servers have that time from `now`
    back to when their turn came.
    """
    if deployment is None:
        return None
    status = deployment.get("status") or {}
    told = {each.get("type"): each for each in status.get("conditions") or []}
    refused, progress = told.get("ReplicaFailure", {}), told.get("Progressing", {})
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return None  # these are words about the template of before
    if refused.get("status") == "True":
        return Problem(WORKLOAD_READY, conditions.PODS_REFUSED, refused.get("message", ""))
    patience = float((deployment.get("spec") or {}).get("progressDeadlineSeconds") or 600)
    gets_on = any(
        pod.fetching or (pod.prepared and age_seconds(pod.prepared, now) < patience)
        for pod in current
    )
    if progress.get("reason") == "ProgressDeadlineExceeded" and not gets_on:
        message = f"the rollout stands still: {progress.get('message') or 'no pod gets ready'}"
        return Problem(WORKLOAD_READY, conditions.STALLED, message)
    return None


def age_seconds(then: str, now: str) -> float:
    """Between two times of RFC 3339; 0.0 if one is none."""
    try:
        return (datetime.fromisoformat(now) - datetime.fromisoformat(then)).total_seconds()
    except (ValueError, TypeError):
        return 0.0
