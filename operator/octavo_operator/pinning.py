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
from octavo_operator.render.deployment import canonical, choose_image, is_template_of, mark
from octavo_operator.render.settings import OPERATOR_CHANGED
from octavo_operator.spec import InferenceService

_LONGEST = 65536
"""Characters. Annotations share 256 KiB; pods of a larger template follow the operator."""

_OF_THE_PODS = frozenset(
    {
        names.REVISION_ANNOTATION,
        names.RENDERED_ANNOTATION,
        names.TEMPLATE_ANNOTATION,
        names.DEFAULT_IMAGE_ANNOTATION,
        names.UPGRADE_ANNOTATION,
        names.WAITING_ANNOTATION,
        names.CHANGE_CAUSE_ANNOTATION,
        names.LAST_GOOD_ANNOTATION,
        names.SERVED_ANNOTATION,
        names.FAILED_ANNOTATION,
        names.PLAN_ANNOTATION,
    }
)
"""The annotations that speak of the pod template, and stay with it."""


def pinned_image(service: InferenceService, live: Mapping[str, Any] | None, default: str) -> str:
    """The default image to render with: the one of when the pods were last rendered."""
    before, engine = _annotations(live), service.spec.engine
    if asks(service, live):
        return default
    if kept := before.get(names.DEFAULT_IMAGE_ANNOTATION):
        return kept
    if not before.get(names.TEMPLATE_ANNOTATION) or engine.image or engine.version:
        return default
    # Somebody removed the annotation, but not what it speaks of.
    return _image(live) or default


def knows_fetch(service: InferenceService, live: Mapping[str, Any] | None, image: str) -> bool:
    """Whether the server's `image` is to be asked for `octavo fetch`.

    Not where it runs already with a model of the Hub and without: an operator of before rendered
    that, and an edit is to change what it says and no more.
    """
    if live is None or asks(service, live) or _image(live) != image:
        return True
    pod = live["spec"]["template"]["spec"]
    server = [each for each in pod["containers"] if each.get("name") == names.CONTAINER]
    command = (server[0].get("command") or []) if server else []
    downloads = command[:2] == ["octavo", "serve"] and not command[-1].startswith("/")
    fetches = any(
        (each.get("command") or [])[:2] == ["octavo", "fetch"]
        for each in pod.get("initContainers") or ()
    )
    return fetches or not downloads


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
        # Taken away it asks for nothing, nor does bringing it back.
        names.UPGRADE_ANNOTATION: service.upgrade or before.get(names.UPGRADE_ANNOTATION, ""),
    }
    template = rendered["spec"]["template"]
    text = canonical(_unmarked(template))
    kept = before.get(names.TEMPLATE_ANNOTATION, "")
    revision = before.get(names.REVISION_ANNOTATION, "")
    same = before.get(names.RENDERED_ANNOTATION) == annotations[names.RENDERED_ANNOTATION]
    now, then = choose_image(service, image), choose_image(service, default)
    waiting = [] if now == then else [f"the operator's image: {now} -> {then}"]
    if same and not asks(service, live) and is_template_of(kept, revision):
        if kept != text:
            waiting.append(OPERATOR_CHANGED)
        template, text = mark(json.loads(kept), revision), kept
        annotations[names.REVISION_ANNOTATION] = revision
    if len(text) <= _LONGEST:
        annotations[names.TEMPLATE_ANNOTATION] = text
    # Also "": `kubectl rollout undo` brings the annotations of another day back.
    annotations[names.WAITING_ANNOTATION] = "; ".join(waiting)
    return {
        **rendered,
        "metadata": {**metadata, "annotations": annotations},
        "spec": {**rendered["spec"], "template": template},
    }


def hold(live: Mapping[str, Any], rendered: dict[str, Any]) -> dict[str, Any]:
    """The Deployment to apply where the pods are to stay: the live one's, but the number of them
    as `rendered` has it.
    """
    before, metadata = _annotations(live), rendered["metadata"]
    revision = before.get(names.REVISION_ANNOTATION, "")
    kept = before.get(names.TEMPLATE_ANNOTATION, "")
    template = live["spec"]["template"]
    if is_template_of(kept, revision):
        template = mark(json.loads(kept), revision)
    annotations = {
        **{key: value for key, value in before.items() if key in _OF_THE_PODS},
        **{key: value for key, value in metadata["annotations"].items() if key not in _OF_THE_PODS},
    }
    return {
        **rendered,
        "metadata": {**metadata, "annotations": annotations},
        "spec": {**rendered["spec"], "template": template},
    }


def _image(live: Mapping[str, Any] | None) -> str:
    """What the pods' server runs from; "" if that cannot be seen."""
    template = (live or {}).get("spec", {}).get("template") or {}
    containers = (template.get("spec") or {}).get("containers") or ()
    found = [each.get("image", "") for each in containers if each.get("name") == names.CONTAINER]
    return str(found[0]) if found else ""


def _annotations(live: Mapping[str, Any] | None) -> Mapping[str, str]:
    return (live or {}).get("metadata", {}).get("annotations") or {}


def asks(service: InferenceService, live: Mapping[str, Any] | None) -> bool:
    """Whether the owner wants what the operator renders now, and another attempt of it."""
    before = _annotations(live)
    return service.upgrade not in ("", before.get(names.UPGRADE_ANNOTATION, ""))


def _unmarked(template: Mapping[str, Any]) -> dict[str, Any]:
    """As it was before `mark`."""
    metadata = dict(template["metadata"])
    rest = dict(metadata.pop("annotations"))
    del rest[names.REVISION_ANNOTATION]
    return {**template, "metadata": {**metadata, "annotations": rest} if rest else metadata}
