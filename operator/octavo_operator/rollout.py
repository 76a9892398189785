"""Why pods are replaced: the rendered Deployment against the live one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo_operator import names
from octavo_operator.render.settings import explain_change

CREATED = "created"


def decide_cause(
    live: Mapping[str, Any] | None,
    rendered: Mapping[str, Any],
    told: Mapping[str, Any] | None = None,
) -> str:
    """The Deployment's change cause to write; that of the last rollout if nothing rolls now.

    It is applied together with the new template, so an operator that dies right after can still
    tell. `told` is the status.rollout of before: it and the pods' own annotation stand in for
    annotations of the Deployment that somebody removed.
    """
    if live is None:
        return CREATED
    before = live["metadata"].get("annotations") or {}
    after = rendered["metadata"]["annotations"]
    revision = after[names.REVISION_ANNOTATION]
    if not rolls(live, rendered):
        kept = told["reason"] if told and told.get("revision") == revision else CREATED
        return str(before.get(names.CHANGE_CAUSE_ANNOTATION) or kept)
    return explain_change(before.get(names.RENDERED_ANNOTATION), after[names.RENDERED_ANNOTATION])


def rolls(live: Mapping[str, Any], rendered: Mapping[str, Any]) -> bool:
    """Whether applying it replaces the pods."""
    before = live["metadata"].get("annotations") or {}
    # Either word will do: the other one is what somebody wrote, and goes back without a plan.
    known = (before.get(names.REVISION_ANNOTATION), _pods_revision(live))
    return rendered["metadata"]["annotations"][names.REVISION_ANNOTATION] not in known


def _pods_revision(live: Mapping[str, Any]) -> str | None:
    template = (live.get("spec") or {}).get("template") or {}
    annotations = (template.get("metadata") or {}).get("annotations") or {}
    found: str | None = annotations.get(names.REVISION_ANNOTATION)
    return found


def with_cause(
    live: Mapping[str, Any] | None,
    rendered: dict[str, Any],
    told: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The rendered Deployment with its change cause."""
    metadata = rendered["metadata"]
    annotations = {
        **metadata["annotations"],
        names.CHANGE_CAUSE_ANNOTATION: decide_cause(live, rendered, told),
    }
    return {**rendered, "metadata": {**metadata, "annotations": annotations}}
