"""Reading the cluster: the objects of one service, and its pods as facts."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

from octavo_operator import names
from octavo_operator.conditions import Condition, Problem
from octavo_operator.facts import (
    Facts,
    count_ending,
    pods_of,
    read_deployment_problem,
    read_failed,
    read_pods,
)
from octavo_operator.kube import Kube, KubeError
from octavo_operator.render import ALWAYS, SOMETIMES
from octavo_operator.rollout_plan import read_plan
from octavo_operator.spec import InferenceService

Live = dict[str, dict[str, Any] | None]
"""The live objects by kind, None where there is none."""


async def observe_objects(kube: Kube, service: InferenceService, wanted: Collection[str]) -> Live:
    """Of the kinds that every service has, those `wanted` and those that the Deployment names; all
    if there is none that could name any.
    """

    async def read(kind: str) -> dict[str, Any] | None:
        try:
            return await kube.get(kinds[kind], kind, service.namespace, service.name)
        except KubeError as error:
            if error.code == 403 and kind in unsure:
                return None
            raise

    kinds, unsure = {**ALWAYS, **SOMETIMES}, set[str]()
    deployment = await read("Deployment")
    if deployment is None:
        unsure = set(SOMETIMES) - set(wanted)
    others = [kind for kind in ALWAYS if kind != "Deployment"]
    others += sorted({*wanted, *read_extras(deployment), *unsure} - set(ALWAYS))
    found = await asyncio.gather(*(read(kind) for kind in others))
    return {"Deployment": deployment, **dict(zip(others, found, strict=True))}


def read_extras(
    deployment: Mapping[str, Any] | None, kinds: Collection[str] = SOMETIMES
) -> set[str]:
    """Those of the further kinds that a Deployment names."""
    annotations = (deployment or {}).get("metadata", {}).get("annotations") or {}
    return set(annotations.get(names.EXTRAS_ANNOTATION, "").split(",")) & set(kinds)


def with_extras(deployment: dict[str, Any], kinds: Collection[str]) -> dict[str, Any]:
    """The Deployment to apply, with the further kinds that are there or soon will be."""
    if not kinds:
        return deployment
    metadata = deployment["metadata"]
    annotations = {**metadata["annotations"], names.EXTRAS_ANNOTATION: ",".join(sorted(kinds))}
    return {**deployment, "metadata": {**metadata, "annotations": annotations}}


async def observe_pods(kube: Kube, service: InferenceService) -> list[dict[str, Any]]:
    """The service's own, as the API server has them."""
    found = await kube.list("v1", "Pod", service.namespace, names.selector_text(service.name))
    return pods_of(service.name, found)


def read_facts(
    service: InferenceService,
    deployment: Mapping[str, Any] | None,
    pods: list[dict[str, Any]],
    *,
    problem: Problem | None = None,
    fit: Condition | None = None,
    now: str = "",
) -> Facts:
    """About a Deployment and the pods of the service; `deployment` None: there is none of ours.
    `now` is RFC 3339.
    """
    if deployment is None:
        return Facts(
            wanted=service.first_replicas,
            pods=read_pods(pods),
            ending=count_ending(pods),
            problem=problem,
            fit=fit,
        )
    annotations = deployment["metadata"].get("annotations") or {}
    revision = annotations.get(names.REVISION_ANNOTATION, "")
    plan = read_plan(deployment)
    found = read_pods(pods)
    current = [pod for pod in found if pod.revision == revision]
    return Facts(
        wanted=deployment["spec"].get("replicas", 1),
        revision=revision,
        cause=annotations.get(names.CHANGE_CAUSE_ANNOTATION, ""),
        waiting=annotations.get(names.WAITING_ANNOTATION, ""),
        plan=plan.why if plan else "",
        pods=found,
        ending=count_ending(pods),
        problem=problem or read_deployment_problem(deployment, current, now),
        failed=read_failed(pods, revision),
        fit=fit,
    )
