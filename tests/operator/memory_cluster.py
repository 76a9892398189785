"""An API server in a dictionary: as much of it as a pass asks for."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from tests.operator.services import NOW, manifest

from octavo_operator import names
from octavo_operator.admission import Admission
from octavo_operator.autoscalers import Neighbours
from octavo_operator.claims import Claims
from octavo_operator.conditions import Condition
from octavo_operator.gpu_room import Room
from octavo_operator.installation import Installation
from octavo_operator.kube import KubeError
from octavo_operator.pod_loads import PodLoads
from octavo_operator.reconcile import Means, reconcile

Object = dict[str, Any]


class MemoryCluster:
    """With the InferenceService `tiny` in `ns`. Applying replaces: nobody else writes."""

    def __init__(self, **spec: Any) -> None:
        self.objects: dict[str, Object] = {}
        self.pods: list[Object] = []
        self.autoscalers: list[Object] = []  # of others
        self.events: list[str] = []
        self.fit: Condition | None = None
        self.room: Room | None = None
        self.looks = 0
        self.claims: dict[str, list[str]] | None = None  # their access modes
        self.judges: KubeError | None = None  # what a trial of a pod ends with
        self.trials: list[Object] = []
        self.loads: Any = None  # what answers for the pods: `get` of PodHttp
        self.refused: tuple[str, ...] = ()  # kinds
        self.hidden: tuple[str, ...] = ()  # kinds that may not be read
        self.absent: tuple[str, ...] = ()  # kinds whose CRDs are not there
        self.asked: list[str] = []  # kinds of ours that the last pass read
        self.again: float | None = None
        self.image = "octavo-server:1"
        self.installation = Installation(namespace="octavo-system")
        self.now = NOW
        self.live: Object = {**manifest(**spec), "status": {}}
        self.live["metadata"]["resourceVersion"] = "1"

    def edit(self, annotations: dict[str, str] | None = None, **spec: Any) -> None:
        metadata = self.live["metadata"]
        if spec:
            metadata["generation"] += 1
            self.live["spec"] = {**self.live["spec"], **spec}
        if annotations is not None:
            metadata["annotations"] = annotations

    def pass_over(self) -> dict[str, Object]:
        """One pass; the conditions after it, by type."""
        kube: Any = self
        self.asked = []

        async def look(_: object) -> Condition:
            assert self.fit is not None
            return self.fit

        async def find_room(*_: object, **__: object) -> Room:
            assert self.room is not None
            self.looks += 1
            return self.room

        self.again = asyncio.run(
            reconcile(
                kube,
                "ns",
                "tiny",
                image=self.image,
                means=Means(
                    look=None if self.fit is None else look,
                    room=None if self.room is None else find_room,
                    neighbours=Neighbours(kube),
                    claims=None if self.claims is None else Claims(kube),
                    admission=Admission(kube),
                    loads=None if self.loads is None else PodLoads(kube, self.loads),
                ),
                installation=self.installation,
                now=lambda: self.now,
            )
        )
        return {each["type"]: each for each in self.live["status"]["conditions"]}

    @property
    def deployment(self) -> Object:
        return self.objects["Deployment"]

    @property
    def container(self) -> Object:
        found: Object = self.deployment["spec"]["template"]["spec"]["containers"][0]
        return found

    @property
    def revision(self) -> str:
        return str(self.deployment["metadata"]["annotations"][names.REVISION_ANNOTATION])

    def has_pods(self, *pods: Object) -> None:
        """These and no others, as `pod_of` makes them."""
        self.pods = [
            {**each, "metadata": {**each["metadata"], "name": f"tiny-1-{index}"}}
            for index, each in enumerate(pods)
        ]

    def pod_of(self, *, ready: bool = False, **status: Any) -> Object:
        """A pod with the template of now, made now."""
        metadata = self.deployment["spec"]["template"]["metadata"]
        owner = {"kind": "ReplicaSet", "name": "tiny-1", "uid": "r", "controller": True}
        condition = {"type": "Ready", "status": "True" if ready else "False"}
        status = {"phase": "Running", "conditions": [condition], **status}
        return {
            "metadata": {
                "namespace": "ns",
                "creationTimestamp": self.now,
                "labels": metadata["labels"],
                "annotations": metadata["annotations"],
                "ownerReferences": [owner],
            },
            "spec": self.deployment["spec"]["template"]["spec"],
            "status": status,
        }

    # What a pass calls of Kube.

    async def get(self, _version: str, kind: str, _namespace: str, name: str) -> Object | None:
        if kind == "PersistentVolumeClaim":
            modes = (self.claims or {}).get(name)
            return None if modes is None else {"spec": {"accessModes": modes}}
        self.asked += [kind] if kind != names.KIND else []
        if kind in self.hidden:
            raise KubeError(403, "Forbidden", f'cannot get resource "{kind}"')
        if kind in self.absent:
            return None
        found = self.live if kind == names.KIND else self.objects.get(kind)
        return copy.deepcopy(found)

    async def serves(self, _version: str, kind: str) -> bool:
        return kind not in self.absent

    async def list(self, _version: str, kind: str, *_: str) -> list[Object]:
        if kind == "HorizontalPodAutoscaler":
            self.asked.append(kind)
            if kind in self.hidden:
                raise KubeError(403, "Forbidden", f'cannot list resource "{kind}"')
            own = [self.objects[kind]] if kind in self.objects else []
            return copy.deepcopy([*own, *self.autoscalers])
        return copy.deepcopy(self.pods)

    async def apply(self, manifest: Object) -> Object:
        if manifest["kind"] in self.refused:
            raise KubeError(403, "Forbidden", f"{manifest['kind']} is forbidden")
        if manifest["kind"] in self.absent:
            raise KubeError(404, "NotFound", "the server could not find the requested resource")
        metadata = {"uid": f"of {manifest['kind']}", **manifest["metadata"]}
        before = self.objects.get(manifest["kind"], {})
        told = {"status": before["status"]} if "status" in before else {}
        new = {**manifest, "metadata": metadata, **told}
        self.objects[manifest["kind"]] = copy.deepcopy(new)
        return copy.deepcopy(self.objects[manifest["kind"]])

    async def delete(self, live: Object) -> None:
        if live["kind"] in self.refused:
            raise KubeError(403, "Forbidden", f"{live['kind']} is forbidden")
        del self.objects[live["kind"]]

    async def scale(self, _: Object, replicas: int) -> None:
        self.live["spec"]["replicas"] = replicas

    async def create(self, event: Object, *, dry_run: bool = False) -> None:
        if event["kind"] == "Pod":
            assert dry_run
            self.trials.append(event)
            if self.judges is not None:
                raise self.judges
            return
        self.events.append(f"{event['type']} {event['reason']}: {event['message']}")

    async def patch_status(self, live: Object, change: Object) -> None:
        assert live["metadata"]["uid"] == self.live["metadata"]["uid"]
        self.live["status"] = _merged(self.live["status"], change)


def _merged(before: Object, change: Object) -> Object:
    result = dict(before)
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = value
    return copy.deepcopy(result)
