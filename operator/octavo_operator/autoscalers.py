"""The HorizontalPodAutoscaler of one service in one pass.

Whatever goes wrong with it is the condition AutoscalingReady and nothing else. It is named on the
Deployment before it is made, as all further objects are, so that it goes when nobody wants it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from octavo_operator.apply import Refused, apply, find_conflict
from octavo_operator.autoscaler_status import decide_autoscaling, scales, with_provider
from octavo_operator.conditions import (
    AUTOSCALER_REFUSED,
    AUTOSCALING_READY,
    FORBIDDEN,
    NAME_CONFLICT,
    NO_METRICS,
    PROGRESSING,
    Condition,
)
from octavo_operator.foreign import describe_foreign_change
from octavo_operator.kube import Kube, KubeError
from octavo_operator.observe import read_extras
from octavo_operator.registrations import find_providers
from octavo_operator.render import AUTOSCALERS
from octavo_operator.spec import InferenceService

KIND = "HorizontalPodAutoscaler"

KEPT_SECONDS = 60.0

Object = dict[str, Any]


class Neighbours:
    """Who scales what in a namespace, as listed at most `KEPT_SECONDS` ago: each of its services
    asks, and it has as many autoscalers as these.
    """

    def __init__(self, kube: Kube, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube, self._clock = kube, clock
        self._kept: dict[str, tuple[float, list[Object]]] = {}

    async def others(self, service: InferenceService, own: Object | None) -> list[str]:
        """The names of the autoscalers, but `own`, that scale this service. KubeError."""
        now = self._clock()
        until, found = self._kept.get(service.namespace, (0.0, []))
        if now >= until:
            version = AUTOSCALERS[KIND]
            found = [
                {"metadata": {"name": each["metadata"]["name"]}, "spec": _target(each)}
                for each in await self._kube.list(version, KIND, service.namespace)
            ]
            self._kept[service.namespace] = now + KEPT_SECONDS, found
        mine = None if own is None else own["metadata"]["name"]
        names = (each["metadata"]["name"] for each in found if scales(each, service))
        return [name for name in names if name != mine]


def _target(autoscaler: Object) -> Object:
    return {"scaleTargetRef": (autoscaler.get("spec") or {}).get("scaleTargetRef")}


class Autoscalers:
    """Made by `observe`; `follow` then makes the cluster's as the manifest wants it."""

    def __init__(self, kube: Kube, service: InferenceService, manifests: list[Object]) -> None:
        self._kube, self._service = kube, service
        self._wanted = next((each for each in manifests if each["kind"] == KIND), None)
        self._live: Object | None = None
        self._others: list[str] = []
        self._error: KubeError | None = None
        self.told: list[str] = []
        """What others had changed, and was set back, in a sentence each."""

    @classmethod
    async def observe(
        cls,
        kube: Kube,
        service: InferenceService,
        manifests: list[Object],
        deployment: Mapping[str, Any] | None,
        neighbours: Neighbours | None,
    ) -> Autoscalers:
        """Asks for nothing of a service that has never had any, but before it has a Deployment.
        `neighbours` None: nobody looks for a second one.
        """
        found = cls(kube, service, manifests)
        scaled = service.spec.autoscaling is not None
        named = scaled or bool(read_extras(deployment, AUTOSCALERS))
        if not named and deployment is not None:
            return found
        try:
            found._live = await kube.get(AUTOSCALERS[KIND], KIND, service.namespace, service.name)
            if scaled and neighbours is not None:
                ours = found._live if found._is_ours() else None
                found._others = await neighbours.others(service, ours)
        except KubeError as error:
            found._error = error if named else None
        return found

    @property
    def named(self) -> set[str]:
        """What the Deployment is to name: it if it is wanted, there, or cannot be looked at."""
        there = self._wanted is not None or self._error is not None or self._is_ours()
        return {KIND} if there else set()

    async def follow(self, deployment: Mapping[str, Any] | None) -> Condition | None:
        """None for a service without autoscaling."""
        if self._error is not None:
            return self._explain(self._error)
        try:
            if self._wanted is None:
                if self._is_ours() and self._live is not None:
                    await self._kube.delete(self._live)
            elif not self._others and (problem := await self._apply(deployment)) is not None:
                return problem
        except KubeError as error:
            if error.code == 409:
                raise  # it was replaced meanwhile: the next pass knows more
            return self._explain(error)
        said = decide_autoscaling(self._service, self._live, self._others)
        if said is None or said.reason != NO_METRICS:
            return said
        try:
            return with_provider(said, await find_providers(self._kube))
        except KubeError:  # an operator of some namespaces has no right on them
            return said

    async def _apply(self, deployment: Mapping[str, Any] | None) -> Condition | None:
        """A second one beside somebody else's would fight it, so that none is made there."""
        if KIND not in read_extras(deployment, AUTOSCALERS):
            return _no(PROGRESSING, f"the {KIND} waits for the Deployment")
        assert self._wanted is not None
        if self._live is not None and (conflict := find_conflict(self._service, self._live)):
            return _no(NAME_CONFLICT, conflict)
        try:
            applied = await apply(self._kube, self._service, self._wanted, self._live)
        except Refused as error:
            may = error.problem.reason != FORBIDDEN
            return _no(AUTOSCALER_REFUSED if may else FORBIDDEN, error.problem.message)
        if changed := describe_foreign_change(self._live, applied):
            self.told.append(changed)
        self._live = applied
        return None

    def _explain(self, error: KubeError) -> Condition | None:
        if self._service.spec.autoscaling is None and error.code != 403:
            raise error
        return _no(FORBIDDEN, f"the {KIND}: {error}")

    def _is_ours(self) -> bool:
        return self._live is not None and find_conflict(self._service, self._live) is None


def _no(reason: str, message: str) -> Condition:
    return Condition(AUTOSCALING_READY, "False", reason, message)
