"""Reading the cluster: the objects of one service, and its pods as facts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from octavo_operator import names
from octavo_operator.conditions import Problem
from octavo_operator.facts import (
    Facts,
    count_ending,
    pods_of,
    read_deployment_problem,
    read_failed,
    read_pods,
)
from octavo_operator.kube import Kube
from octavo_operator.spec import InferenceService

Live = dict[str, dict[str, Any] | None]
"""The live objects by kind, None where there is none."""


async def observe_objects(kube: Kube, service: InferenceService) -> Live:
    kinds = {"Deployment": "apps/v1", "Service": "v1", "PodDisruptionBudget": "policy/v1"}
    found = await asyncio.gather(
        *(
            kube.get(version, kind, service.namespace, service.name)
            for kind, version in kinds.items()
        )
    )
    return dict(zip(kinds, found, strict=True))


async def observe_facts(
    kube: Kube,
    service: InferenceService,
    deployment: Mapping[str, Any] | None,
    problem: Problem | None,
) -> Facts:
    """`deployment` as apply left it; None if there is none of ours."""
    selector = names.selector_text(service.name)
    found = await kube.list("v1", "Pod", service.namespace, selector)
    pods = pods_of(service.name, found)
    if deployment is None:
        return Facts(
            wanted=service.first_replicas,
            pods=read_pods(pods),
            ending=count_ending(pods),
            problem=problem,
        )
    annotations = deployment["metadata"].get("annotations") or {}
    revision = annotations.get(names.REVISION_ANNOTATION, "")
    return Facts(
        wanted=deployment["spec"].get("replicas", 1),
        revision=revision,
        cause=annotations.get(names.CHANGE_CAUSE_ANNOTATION, ""),
        waiting=annotations.get(names.WAITING_ANNOTATION, ""),
        pods=read_pods(pods),
        ending=count_ending(pods),
        problem=problem or read_deployment_problem(deployment),
        failed=read_failed(pods, revision),
    )
