"""How many pods are wanted, where the manifest does not say: the live number, kept."""

from __future__ import annotations

from typing import Any

from octavo_operator import names
from octavo_operator.conditions import SUSPENDED
from octavo_operator.kube import Kube, KubeError
from octavo_operator.spec import InferenceService


def read_replicas(deployment: dict[str, Any], suspended: bool) -> int | None:
    """How many pods are wanted; of a suspended service, how many will be. None: nobody knows."""
    annotations = deployment["metadata"].get("annotations") or {}
    kept = str(annotations.get(names.RESUME_ANNOTATION, ""))
    replicas: int | None = deployment["spec"].get("replicas")
    if kept.isdecimal():
        return int(kept)
    # Somebody removed the annotation: 0 is what suspending made of it, not what was there.
    return None if suspended and replicas == 0 else replicas


def wanted_before(previous: dict[str, Any]) -> int | None:
    """How many pods the last pass saw wanted: a Deployment deleted by hand comes back with them."""
    wanted = str(previous.get("readyOfWanted", "")).rpartition("/")[2]
    if wanted == "0" and any(
        each["reason"] == SUSPENDED for each in previous.get("conditions") or ()
    ):
        return None  # 0 is what suspending made of it
    return int(wanted) if wanted.isdecimal() else None


async def seed_replicas(
    kube: Kube, live: dict[str, Any], service: InferenceService, known: int | None
) -> int:
    """Writes an absent spec.replicas through /scale, once: the number `known`, else the first one.

    Without it GET /scale is an error, and autoscalers do nothing. What people apply never had the
    field, so it stays; of a writer that was quicker the watch tells. A suspended service keeps its
    spec as it is.
    """
    count = service.first_replicas if known is None else known
    if service.spec.replicas is not None or service.spec.suspend:
        return count
    try:
        await kube.scale(live, count)
    except KubeError as error:
        if error.code != 409:
            raise
    return count
