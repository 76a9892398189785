"""The HTTPRoute and the InferencePool of one service in one pass.

Their APIs need not be there, nor the rights for them: whatever goes wrong with them is the
condition RoutingReady and nothing else. They are named on the Deployment before they are made, as
all further objects are, so that they are deleted once the manifest does not ask for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from octavo_operator.apply import Refused, apply, find_conflict
from octavo_operator.conditions import (
    FORBIDDEN,
    MISSING_CRDS,
    NAME_CONFLICT,
    PROGRESSING,
    ROUTE_REFUSED,
    ROUTING_READY,
    Condition,
)
from octavo_operator.foreign import describe_foreign_change
from octavo_operator.kube import Kube, KubeError, crd_name
from octavo_operator.observe import read_extras
from octavo_operator.render import ROUTES
from octavo_operator.route_status import decide_routing
from octavo_operator.spec import InferenceService

Object = dict[str, Any]


class Routes:
    """Made by `observe`; `follow` then makes the cluster's as the manifest wants them."""

    def __init__(self, kube: Kube, service: InferenceService, manifests: list[Object]) -> None:
        self._kube, self._service = kube, service
        self._wanted = {each["kind"]: each for each in manifests if each["kind"] in ROUTES}
        self._live: dict[str, Object] = {}
        self._unread: dict[str, KubeError] = {}
        self.told: list[str] = []
        """What others had changed, and was set back, in a sentence each."""

    @classmethod
    async def observe(
        cls,
        kube: Kube,
        service: InferenceService,
        manifests: list[Object],
        deployment: Mapping[str, Any] | None,
    ) -> Routes:
        """Asks for nothing of a service that has never had any, but before it has a Deployment: the
        one that named them may be gone.
        """
        routes = cls(kube, service, manifests)
        named = read_extras(deployment, ROUTES)
        unsure = set(ROUTES) - set(routes._wanted) if deployment is None else set()
        for kind in {**routes._wanted, **dict.fromkeys(sorted(named | unsure))}:
            try:
                found = await kube.get(ROUTES[kind], kind, service.namespace, service.name)
            except KubeError as error:
                if kind not in unsure:
                    routes._unread[kind] = error
            else:
                if found is not None:
                    routes._live[kind] = found
        return routes

    @property
    def named(self) -> set[str]:
        """What the Deployment is to name: what is wanted, or there, or cannot be looked at."""
        return {*self._wanted, *self._unread, *(kind for kind in self._live if self._is_ours(kind))}

    async def follow(
        self, deployment: Mapping[str, Any] | None, made: Callable[[Mapping[str, Any]], None]
    ) -> Condition | None:
        """None for a service that has none and wants none. `made` hears what there is."""
        problem = await self._apply(deployment, made) if self._wanted else None
        if problem is None:
            problem = await self._delete()
        if problem is not None or not self._wanted:
            return problem
        return decide_routing(self._live["HTTPRoute"], self._live.get("InferencePool"))

    async def _apply(
        self, deployment: Mapping[str, Any] | None, made: Callable[[Mapping[str, Any]], None]
    ) -> Condition | None:
        """The first that cannot be made ends it: a route to nothing would be worse than none."""
        if missing := set(self._wanted) - read_extras(deployment, ROUTES):
            what = " and ".join(sorted(missing))
            return _no(PROGRESSING, f"the {what} waits for the Deployment")
        for kind, manifest in self._wanted.items():
            before = self._live.get(kind)
            if before is not None and (conflict := find_conflict(self._service, before)):
                return _no(NAME_CONFLICT, conflict)
            try:
                if kind in self._unread:
                    raise self._unread[kind]
                applied = await apply(self._kube, self._service, manifest, before)
            except Refused as error:
                reason = FORBIDDEN if error.problem.reason == FORBIDDEN else ROUTE_REFUSED
                return await self._explain(reason, error.problem.message)
            except KubeError as error:
                if error.code == 409:
                    raise  # it was replaced meanwhile: the next pass knows more
                return await self._explain(_reason(error), f"{kind}: {error}")
            if changed := describe_foreign_change(before, applied):
                self.told.append(changed)
            self._live[kind] = applied
            made(applied)
        return None

    async def _delete(self) -> Condition | None:
        """What nobody wants any more: the route first, then what it went to."""
        for kind in reversed(ROUTES):
            if kind in self._wanted:
                continue
            try:
                if kind in self._unread:
                    raise self._unread[kind]
                if kind in self._live and self._is_ours(kind):
                    await self._kube.delete(self._live.pop(kind))
            except KubeError as error:
                if error.code == 409:
                    raise
                if await self._is_served(kind):
                    words = f"the {kind} is not wanted any more, but cannot be deleted: {error}"
                    return _no(_reason(error), words + _hint(_reason(error)))
        return None

    async def _explain(self, reason: str, message: str) -> Condition:
        """Why one cannot be made: for want of the APIs, whatever else was said, or as said."""
        if lacking := [each for each in self._wanted if not await self._is_served(each)]:
            crds = " and ".join(crd_name(ROUTES[each], each) for each in lacking)
            return _no(
                MISSING_CRDS,
                f"the cluster has no {crds}: install the CRDs, or remove what asks for them from "
                "spec.routing; the Service answers inside the cluster meanwhile",
            )
        return _no(reason, message + _hint(reason))

    async def _is_served(self, kind: str) -> bool:
        try:
            return await self._kube.serves(ROUTES[kind], kind)
        except KubeError:
            return True  # who may not look it up hears what the API server said of the object

    def _is_ours(self, kind: str) -> bool:
        return find_conflict(self._service, self._live[kind]) is None


def _no(reason: str, message: str) -> Condition:
    return Condition(ROUTING_READY, "False", reason, message)


def _reason(error: KubeError) -> str:
    return FORBIDDEN if error.code == 403 else ROUTE_REFUSED


def _hint(reason: str) -> str:
    return "; the chart's value routing.enabled gives this right" if reason == FORBIDDEN else ""
