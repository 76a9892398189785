"""Why pods are replaced: the rendered Deployment against the live one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo_operator import names
from octavo_operator.render.settings import explain_change

CREATED = "created"


def decide_cause(live: Mapping[str, Any] | None, rendered: Mapping[str, Any]) -> str:
    """The Deployment's change cause to write; that of the last rollout if nothing rolls now.

    It is applied together with the new template, so an operator that dies right after can still
    tell.
    """
    if live is None:
        return CREATED
    before = live["metadata"].get("annotations") or {}
    after = rendered["metadata"]["annotations"]
    if before.get(names.REVISION_ANNOTATION) == after[names.REVISION_ANNOTATION]:
        return str(before.get(names.CHANGE_CAUSE_ANNOTATION, CREATED))
    return explain_change(before.get(names.RENDERED_ANNOTATION), after[names.RENDERED_ANNOTATION])


def with_cause(live: Mapping[str, Any] | None, rendered: dict[str, Any]) -> dict[str, Any]:
    """The rendered Deployment with its change cause."""
    metadata = rendered["metadata"]
    annotations = {
        **metadata["annotations"],
        names.CHANGE_CAUSE_ANNOTATION: decide_cause(live, rendered),
    }
    return {**rendered, "metadata": {**metadata, "annotations": annotations}}
