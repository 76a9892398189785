"""The APIServices that send custom.metrics.k8s.io here: made, kept current, withdrawn.

A group has one provider in a cluster, and autoscalers ask the preferred version: one of ours beside
another's would take all of its readers away. Their owner is our ClusterRole: an APIService that led
nowhere once all else is uninstalled would keep every namespace from being deleted.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo_operator import names
from octavo_operator.kube import Kube, KubeError
from octavo_operator.metrics_api.questions import GROUP, VERSIONS

API_VERSION, KIND = "apiregistration.k8s.io/v1", "APIService"
RBAC_VERSION, CLUSTER_ROLE = "rbac.authorization.k8s.io/v1", "ClusterRole"

PRIORITIES = dict(zip(VERSIONS, (200, 100), strict=True))

Object = dict[str, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """The Service that leads to this metrics API."""

    namespace: str
    name: str
    port: int = 443
    cluster_role: str = ""

    @property
    def host_names(self) -> tuple[str, ...]:
        """By which the API server knows it."""
        return (f"{self.name}.{self.namespace}.svc",)


@dataclass(frozen=True, slots=True)
class Plan:
    """`taken` says who else has the group, "" for nobody; `withdrawn` are ours, which go then."""

    created: tuple[Object, ...] = ()
    replaced: tuple[Object, ...] = ()
    withdrawn: tuple[Object, ...] = ()
    taken: str = ""


def decide_registration(
    found: Sequence[Object], place: Place, authorities: bytes, owner: Object | None = None
) -> Plan:
    """`found` are all APIServices of the cluster, `owner` the ClusterRole if there is one."""
    ofs = [each for each in found if (each.get("spec") or {}).get("group") == GROUP]
    ours = {each["spec"].get("version"): each for each in ofs if _is_ours(each, place)}
    others = [each for each in ofs if not _is_ours(each, place)]
    if others:
        taken = ", ".join(_describe(each) for each in others)
        return Plan(withdrawn=tuple(ours.values()), taken=taken)
    created, replaced = [], []
    for version in VERSIONS:
        wanted = render_api_service(version, place, authorities, owner)
        live = ours.get(version)
        if live is None:
            created.append(wanted)
        elif _differs(live, wanted):
            owners = wanted["metadata"].get("ownerReferences", [])
            metadata = {**live["metadata"], "ownerReferences": owners}
            replaced.append({**wanted, "metadata": metadata})
    return Plan(tuple(created), tuple(replaced))


def _differs(live: Object, wanted: Object) -> bool:
    if live["metadata"].get("ownerReferences", []) != wanted["metadata"].get("ownerReferences", []):
        return True
    spec = live["spec"]
    changed = any(spec.get(key) != value for key, value in wanted["spec"].items())
    return changed or bool(spec.get("insecureSkipTLSVerify"))


def render_api_service(
    version: str, place: Place, authorities: bytes, owner: Object | None = None
) -> Object:
    metadata: Object = {
        "name": f"{version}.{GROUP}",
        "labels": {"app.kubernetes.io/name": "octavo", names.MANAGED_BY_LABEL: "octavo"},
    }
    if owner is not None:
        reference = {"name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}
        metadata["ownerReferences"] = [
            {"apiVersion": RBAC_VERSION, "kind": CLUSTER_ROLE, **reference}
        ]
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": metadata,
        "spec": {
            "group": GROUP,
            "version": version,
            "groupPriorityMinimum": 100,
            "versionPriority": PRIORITIES[version],
            "caBundle": base64.b64encode(authorities).decode(),
            "service": {"namespace": place.namespace, "name": place.name, "port": place.port},
        },
    }


def _is_ours(live: Mapping[str, Any], place: Place) -> bool:
    service = live["spec"].get("service") or {}
    return (service.get("namespace"), service.get("name")) == (place.namespace, place.name)


def _describe(live: Mapping[str, Any]) -> str:
    service = live["spec"].get("service")
    if not service:
        return f"the APIService {live['metadata']['name']} is the API server's own"
    to = f"{service.get('namespace')}/{service.get('name')}"
    return f"the APIService {live['metadata']['name']} leads to the Service {to}"


class Registration:
    def __init__(self, kube: Kube, place: Place) -> None:
        self._kube, self._place = kube, place
        self.taken = ""
        """Who has the group, at the last look."""

    async def _owner(self) -> Object | None:
        if not (name := self._place.cluster_role):
            return None
        return await self._kube.get(RBAC_VERSION, CLUSTER_ROLE, None, name)

    async def look(self, authorities: bytes) -> None:
        """Registers, or withdraws. KubeError, KubeUnreachable; of a writer that was quicker the
        next look tells.
        """
        found = await self._kube.list(API_VERSION, KIND, None)
        plan = decide_registration(found, self._place, authorities, await self._owner())
        if plan.taken != self.taken:
            told = f"not registered: {plan.taken}" if plan.taken else "the group is free again"
            log.warning("%s: %s", GROUP, told)
        self.taken = plan.taken
        for each in plan.created:
            await _quietly(self._kube.create(each), "registered", each)
        for each in plan.replaced:
            await _quietly(self._kube.replace(each), "kept current", each)
        for each in plan.withdrawn:
            await _quietly(
                self._kube.delete({**each, "apiVersion": API_VERSION, "kind": KIND}),
                "withdrawn", each,
            )  # fmt: skip


async def _quietly(work: Any, what: str, manifest: Mapping[str, Any]) -> None:
    try:
        await work
    except KubeError as error:
        if error.code not in (404, 409):
            raise
        return
    log.info("%s: %s", manifest["metadata"]["name"], what)
