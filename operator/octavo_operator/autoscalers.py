"""The HorizontalPodAutoscaler of one service in one pass.

Whatever goes wrong with it is the condition AutoscalingReady and nothing else. It is named on the
Deployment before it is made, as all further objects are, so that it goes when nobody wants it.
"""

from __future__ import annotations

from collections.abc import Mapping
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

Object = dict[str, Any]


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
    ) -> Autoscalers:
        """Asks for nothing of a service that has never had any, but before it has a Deployment."""
        found = cls(kube, service, manifests)
        asked = service.spec.autoscaling is not None or read_extras(deployment, AUTOSCALERS)
        if not asked and deployment is not None:
            return found
        try:
            there = [
                {**each, "apiVersion": AUTOSCALERS[KIND], "kind": KIND}  # lists leave them out
                for each in await kube.list(AUTOSCALERS[KIND], KIND, service.namespace)
            ]
        except KubeError as error:
            found._error = error if asked else None
            return found
        found._live = next((each for each in there if found._is_named(each)), None)
        ours = found._live if found._is_ours() else None
        others = [each for each in there if each is not ours and scales(each, service)]
        found._others = [each["metadata"]["name"] for each in others]
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

    def _is_named(self, live: Object) -> bool:
        return bool(live["metadata"]["name"] == self._service.name)

    def _is_ours(self) -> bool:
        return self._live is not None and find_conflict(self._service, self._live) is None


def _no(reason: str, message: str) -> Condition:
    return Condition(AUTOSCALING_READY, "False", reason, message)
