"""What became of the objects of some services, write by write, and what must never be so. Pure.

All objects of a cluster are versioned by one counter, so writes of several kinds have one order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .kube_api import Object

SERVICE_LABEL = "octavo.dev/service"
CHILDREN = {"Deployment": "apps/v1", "Service": "v1", "PodDisruptionBudget": "policy/v1"}


@dataclass(frozen=True, slots=True)
class Moment:
    """An object as a write left it; `gone`: the write deleted it."""

    version: int
    kind: str
    item: Object
    gone: bool = False


@dataclass(slots=True)
class History:
    """`gaps`: (version, version) between which a write may be missing."""

    moments: list[Moment] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)

    def claims(self) -> int:
        """How many writes left an InferenceService that says Ready."""
        services = (each.item for each in self.moments if each.kind == "InferenceService")
        return sum(_ready_condition(each) is not None for each in services)

    def lies(self) -> list[str]:
        """Where an InferenceService says Ready and no pod of it serves, or says so of its present
        manifest and none with those settings does.
        """
        services: dict[str, Object] = {}
        lengths: dict[tuple[str, int], int] = {}
        pods: defaultdict[str, dict[str, Object]] = defaultdict(dict)
        found = []
        for moment in self._in_order():
            metadata = moment.item["metadata"]
            if moment.kind == "InferenceService":
                name = metadata["name"]
                services[name] = moment.item
                lengths[name, metadata["generation"]] = _length(moment.item)
                if moment.gone:
                    del services[name]
            elif moment.kind == "Pod":
                name = metadata["labels"][SERVICE_LABEL]
                pods[name][metadata["uid"]] = moment.item
                if moment.gone:
                    del pods[name][metadata["uid"]]
            else:
                continue
            claim = _ready_condition(services.get(name, {}))
            if claim is None or self._unknown(moment.version):
                continue
            arguments = [_arguments(each) for each in pods[name].values() if serves(each)]
            wanted = f"--max-model-len={lengths.get((name, claim['observedGeneration']))}"
            current = claim["observedGeneration"] == services[name]["metadata"]["generation"]
            if not arguments or (current and not any(wanted in each for each in arguments)):
                found.append(f"{moment.version}: {name} {claim}, its pods: {arguments}")
        return found

    def doubled(self, replicas: int) -> list[str]:
        """Children that were made more than once, and ReplicaSets that together want too many."""
        uids: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        lengths: defaultdict[str, set[int]] = defaultdict(set)
        wanted: defaultdict[str, dict[str, int]] = defaultdict(dict)
        found = []
        for moment in self._in_order():
            metadata = moment.item["metadata"]
            name = metadata.get("labels", {}).get(SERVICE_LABEL, metadata["name"])
            if moment.kind == "InferenceService":
                lengths[name].add(_length(moment.item))
            elif moment.kind in CHILDREN or moment.kind == "ReplicaSet":
                uids[moment.kind, name].add(metadata["uid"])
            if moment.kind == "ReplicaSet":
                amount = 0 if moment.gone else moment.item["spec"]["replicas"]
                wanted[name][metadata["uid"]] = amount
                total = sum(wanted[name].values())
                if total > replicas and not self._unknown(moment.version):
                    found.append(f"{moment.version}: {name} wants {total} pods: {wanted[name]}")
        for (kind, name), each in uids.items():
            most = len(lengths[name]) if kind == "ReplicaSet" else 1
            if len(each) > most:
                found.append(f"{kind} {name}: {len(each)} made where {most} should be")
        return found

    def _in_order(self) -> Iterator[Moment]:
        yield from sorted(self.moments, key=lambda each: each.version)

    def _unknown(self, version: int) -> bool:
        return any(begin < version <= end for begin, end in self.gaps)


def serves(pod: Object) -> bool:
    """Ready, and not told to end."""
    found = pod.get("status", {}).get("conditions", ())
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in found)
    return ready and not pod["metadata"].get("deletionTimestamp")


def _ready_condition(service: Object) -> Object | None:
    for each in service.get("status", {}).get("conditions", ()):
        if each["type"] == "Ready" and each["status"] == "True":
            found: Object = each
            return found
    return None


def _length(service: Object) -> int:
    return int(service["spec"]["engine"]["maxModelLen"])


def _arguments(pod: Object) -> Sequence[str]:
    found: Sequence[str] = pod["spec"]["containers"][0]["args"]
    return found
