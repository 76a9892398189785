"""Which services and pods there are, as the API server's watches tell, and what pods said.

Memory alone: who answers a question asks nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo_operator import names
from octavo_operator.facts import pods_of
from octavo_operator.metrics_api.judgement import PodTrack, Scaling, Target
from octavo_operator.metrics_api.tracks import Track
from octavo_operator.scaling_targets import decide_targets
from octavo_operator.spec import InvalidSpec, parse

Key = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class Service:
    key: Key
    labels: Mapping[str, str]
    scaling: Scaling


@dataclass(slots=True)
class Pod:
    """`run` tells apart the runs of its server's container; "" while it does not run. `counts`: it
    is one of its service's replicas, and not being deleted.
    """

    key: Key
    uid: str
    service: Key
    labels: Mapping[str, str]
    ip: str
    run: str
    ready: bool
    counts: bool
    track: Track = field(default_factory=Track)

    @property
    def asked(self) -> bool:
        """Whether there is somebody to ask, whose answer is of use."""
        return bool(self.counts and self.ip and self.run)


class Fleet:
    def __init__(self) -> None:
        self.services: dict[Key, Service] = {}
        self._pods: dict[Key, Pod] = {}
        self._of: dict[Key, dict[Key, Pod]] = {}

    def saw_service(self, live: Mapping[str, Any]) -> None:
        service = read_service(live)
        self.services[service.key] = service

    def lost_service(self, key: Key) -> None:
        self.services.pop(key, None)

    def saw_pod(self, live: dict[str, Any], now: float) -> None:
        """A pod as it is now. One that was started again still owes figures: whoever counted it for
        nothing would take pods away from a service that crashes under its load.
        """
        pod = read_pod(live)
        before = self._pods.get(pod.key)
        if before is not None and before.uid == pod.uid:
            pod.track = before.track
        pod.track.saw(ready=pod.ready and pod.counts, now=now)
        if before is not None and before.service != pod.service:
            self.lost_pod(pod.key)
        self._pods[pod.key] = pod
        self._of.setdefault(pod.service, {})[pod.key] = pod

    def lost_pod(self, key: Key) -> None:
        pod = self._pods.pop(key, None)
        if pod is None:
            return
        left = self._of[pod.service]
        del left[key]
        if not left:
            del self._of[pod.service]

    def keep_services(self, namespace: str | None, keys: Iterable[Key]) -> None:
        """These and no others are in that namespace; None: in all of them."""
        for key in _others(self.services, namespace, keys):
            self.lost_service(key)

    def keep_pods(self, namespace: str | None, keys: Iterable[Key]) -> None:
        for key in _others(self._pods, namespace, keys):
            self.lost_pod(key)

    def pods(self) -> Iterator[Pod]:
        return iter(list(self._pods.values()))

    def pods_in(self, namespace: str) -> list[Pod]:
        return [pod for pod in self._pods.values() if pod.key[0] == namespace]

    def pod(self, key: Key) -> Pod | None:
        return self._pods.get(key)

    def tracks(self, service: Key) -> list[PodTrack]:
        """Of its replicas, whether their servers run or not."""
        return [
            PodTrack(pod.key[1], pod.track)
            for pod in self._of.get(service, {}).values()
            if pod.counts
        ]


def read_service(live: Mapping[str, Any]) -> Service:
    metadata = live["metadata"]
    try:
        parsed = parse(live)
    except InvalidSpec:
        scaling = Scaling()  # the operator tells its owner
    else:
        wanted = parsed.spec.autoscaling
        scaling = Scaling(
            replicas=parsed.spec.replicas,
            least=1 if wanted is None else max(1, wanted.min_replicas),
            targets={
                each.metric: Target(each.value, each.shared) for each in decide_targets(parsed)
            },
        )
    key = (metadata["namespace"], metadata["name"])
    return Service(key, metadata.get("labels") or {}, scaling)


def read_pod(live: dict[str, Any]) -> Pod:
    metadata, status = live["metadata"], live.get("status") or {}
    labels = metadata.get("labels") or {}
    service = str(labels.get(names.SERVICE_LABEL, ""))
    over = metadata.get("deletionTimestamp") or status.get("phase") in ("Succeeded", "Failed")
    conditions = status.get("conditions") or ()
    return Pod(
        key=(metadata["namespace"], metadata["name"]),
        uid=metadata["uid"],
        service=(metadata["namespace"], service),
        labels=labels,
        ip=str(status.get("podIP") or ""),
        run=_run(metadata["uid"], status),
        ready=any(each["type"] == "Ready" and each["status"] == "True" for each in conditions),
        counts=not over and bool(pods_of(service, [live])),
    )


def _run(uid: str, status: Mapping[str, Any]) -> str:
    for each in status.get("containerStatuses") or ():
        if each.get("name") == names.CONTAINER and "running" in (each.get("state") or {}):
            return f"{uid}/{each.get('restartCount', 0)}"
    return ""


def _others(there: Iterable[Key], namespace: str | None, keys: Iterable[Key]) -> list[Key]:
    kept = set(keys)
    return [key for key in there if key not in kept and namespace in (None, key[0])]
