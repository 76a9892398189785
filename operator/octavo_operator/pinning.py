"""An upgrade of the operator replaces no pods: what it renders differently waits to be asked for.

The Deployment carries the pod template as rendered when its owner last changed something, and the
operator's default image of then. While the manifest says the same, that template is applied again
(what others change by hand still goes back). A new value of the InferenceService's annotation
octavo.dev/upgrade asks for the present one. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from octavo_operator import names
from octavo_operator.render.deployment import canonical, choose_image, hash_template, mark
from octavo_operator.render.settings import OPERATOR_CHANGED
from octavo_operator.spec import InferenceService

_LONGEST = 131072
"""Characters. Annotations share 256 KiB; pods of a larger template follow the operator."""


def pinned_image(service: InferenceService, live: Mapping[str, Any] | None, default: str) -> str:
    """The default image to render with: the one of when the pods were last rendered."""
    before = _annotations(live)
    if _asks(service, before):
        return default
    return before.get(names.DEFAULT_IMAGE_ANNOTATION) or default


def pin(
    service: InferenceService,
    live: Mapping[str, Any] | None,
    rendered: dict[str, Any],
    *,
    image: str,
    default: str,
) -> dict[str, Any]:
    """The Deployment to apply: `rendered` (with `image`, from pinned_image, as default), but the
    live one's pod template where nothing else than the operator differs from then.

    An annotation says what an upgrade would change; `default` is this operator's own image.
    """
    before, metadata = _annotations(live), rendered["metadata"]
    annotations = {
        **metadata["annotations"],
        names.DEFAULT_IMAGE_ANNOTATION: image,
        names.UPGRADE_ANNOTATION: service.upgrade,
    }
    template = rendered["spec"]["template"]
    text = canonical(_unmarked(template))
    kept = before.get(names.TEMPLATE_ANNOTATION, "")
    revision = before.get(names.REVISION_ANNOTATION, "")
    same = before.get(names.RENDERED_ANNOTATION) == annotations[names.RENDERED_ANNOTATION]
    now, then = choose_image(service, image), choose_image(service, default)
    waiting = [] if now == then else [f"the operator's image: {now} -> {then}"]
    if same and not _asks(service, before) and _is(kept, revision):
        if kept != text:
            waiting.append(OPERATOR_CHANGED)
        template, text = mark(json.loads(kept), revision), kept
        annotations[names.REVISION_ANNOTATION] = revision
    if len(text) <= _LONGEST:
        annotations[names.TEMPLATE_ANNOTATION] = text
    if waiting:
        annotations[names.WAITING_ANNOTATION] = "; ".join(waiting)
    return {
        **rendered,
        "metadata": {**metadata, "annotations": annotations},
        "spec": {**rendered["spec"], "template": template},
    }


def _annotations(live: Mapping[str, Any] | None) -> Mapping[str, str]:
    return (live or {}).get("metadata", {}).get("annotations") or {}


def _asks(service: InferenceService, before: Mapping[str, str]) -> bool:
    """Whether the owner wants what the operator renders now."""
    return before.get(names.UPGRADE_ANNOTATION, "") != service.upgrade


def _is(text: str, revision: str) -> bool:
    """Whether the text is the template of that revision, and not what somebody made of it."""
    try:
        return hash_template(json.loads(text)) == revision
    except ValueError:
        return False


def _unmarked(template: Mapping[str, Any]) -> dict[str, Any]:
    """As it was before `mark`."""
    metadata = dict(template["metadata"])
    rest = dict(metadata.pop("annotations"))
    del rest[names.REVISION_ANNOTATION]
    return {**template, "metadata": {**metadata, "annotations": rest} if rest else metadata}
