"""What an upgrade of the operator does to pods that run: nothing, until asked."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.operator.services import manifest, service

from octavo_operator import names
from octavo_operator.pinning import pin, pinned_image
from octavo_operator.render.deployment import hash_template, mark, render_deployment
from octavo_operator.rollout import decide_cause
from octavo_operator.spec import InferenceService, parse

OLD, NEW = "octavo-server:1", "octavo-server:2"

Deployment = dict[str, Any]


def applied(
    one: InferenceService, live: Deployment | None, default: str, changed: bool = False
) -> Deployment:
    """As a pass of an operator with that default image applies it; `changed`: it renders pods with
    another grace period."""
    image = pinned_image(one, live, default)
    rendered = render_deployment(one, image=image, replicas=1)
    if changed:
        template = rendered["spec"]["template"]
        del template["metadata"]["annotations"]
        template["spec"]["terminationGracePeriodSeconds"] += 1
        revision = hash_template(template)
        rendered["spec"]["template"] = mark(template, revision)
        rendered["metadata"]["annotations"][names.REVISION_ANNOTATION] = revision
    return pin(one, live, rendered, image=image, default=default)


def upgraded(value: str, **spec: Any) -> InferenceService:
    made = manifest(**spec)
    made["metadata"]["annotations"] = {names.UPGRADE_ANNOTATION: value}
    return parse(made)


def image_of(deployment: Deployment) -> str:
    return str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])


def waiting(deployment: Deployment) -> str | None:
    found: str | None = deployment["metadata"]["annotations"].get(names.WAITING_ANNOTATION)
    return found


def test_a_newer_operator_applies_the_same_pods() -> None:
    first = applied(service(), None, OLD)
    assert waiting(first) == ""
    second = applied(service(), first, NEW, changed=True)
    assert second["spec"]["template"] == first["spec"]["template"]
    assert waiting(second) == (
        f"the operator's image: {OLD} -> {NEW}; the operator renders pods differently than before"
    )
    third = applied(service(), second, NEW, changed=True)
    assert third == second
    # Back to the older operator: nothing waits.
    assert applied(service(), third, OLD) == first


def test_asked_for_it_follows_once() -> None:
    first = applied(service(), None, OLD)
    asked = upgraded("1")
    second = applied(asked, first, NEW)
    assert image_of(second) == NEW
    assert waiting(second) == ""
    assert "engine.image" in decide_cause(first, second)
    third = applied(asked, second, "octavo-server:3")
    assert image_of(third) == NEW
    assert image_of(applied(upgraded("2"), third, "octavo-server:3")) == "octavo-server:3"


def test_a_setting_that_changes_is_rendered_anew_with_the_image_of_before() -> None:
    first = applied(service(), None, OLD)
    changed = service(engine={"maxModelLen": 512})
    second = applied(changed, first, NEW, changed=True)
    assert image_of(second) == OLD
    before, after = (each["spec"]["template"]["spec"] for each in (first, second))
    grace = "terminationGracePeriodSeconds"
    assert after[grace] == before[grace] + 1
    assert "--max-model-len" in " ".join(after["containers"][0]["args"])
    assert waiting(second) == f"the operator's image: {OLD} -> {NEW}"


@pytest.mark.parametrize(
    ("engine", "image"),
    [({"image": "mine:7"}, "mine:7"), ({"version": "9"}, "octavo-server:9")],
)
def test_an_image_of_the_manifest_is_taken(engine: dict[str, str], image: str) -> None:
    first = applied(service(), None, OLD)
    second = applied(service(engine=engine), first, NEW)
    assert image_of(second) == image
    assert waiting(second) == ""
    assert image_of(applied(service(), second, NEW)) == OLD


@pytest.mark.parametrize(
    "text", ["", "{", "[]", json.dumps({"metadata": {}, "spec": {"containers": []}})]
)
def test_a_template_that_somebody_wrote_is_not_applied(text: str) -> None:
    first = applied(service(), None, OLD)
    first["metadata"]["annotations"][names.TEMPLATE_ANNOTATION] = text
    second = applied(service(), first, OLD, changed=True)
    assert second["spec"]["template"] != first["spec"]["template"]
    assert second["spec"]["template"]["spec"]["containers"]


def test_pods_of_before_pinning_follow_once() -> None:
    live = render_deployment(service(), image=OLD, replicas=1)
    assert image_of(applied(service(), live, NEW)) == NEW


def test_a_template_too_large_to_keep_follows_the_operator() -> None:
    large = service(podTemplate={"metadata": {"annotations": dict.fromkeys("abc", "x" * 60_000)}})
    first = applied(large, None, OLD)
    assert names.TEMPLATE_ANNOTATION not in first["metadata"]["annotations"]
    second = applied(large, first, OLD, changed=True)
    assert second["spec"]["template"] != first["spec"]["template"]


@pytest.mark.parametrize(
    "annotations", [{}, {names.REVISION_ANNOTATION: "mine"}, {"a": "b"}, {"a": "b", "c": ""}]
)
def test_annotations_of_the_pods_do_not_unpin_them(annotations: dict[str, str]) -> None:
    one = service(podTemplate={"metadata": {"annotations": annotations}})
    first = applied(one, None, OLD)
    assert applied(one, first, NEW, changed=True)["spec"] == first["spec"]


def test_taking_the_annotation_away_asks_for_nothing() -> None:
    first = applied(upgraded("1"), None, OLD)
    second = applied(service(), first, NEW, changed=True)
    assert second["spec"] == first["spec"]
    # Nor does bringing it back.
    assert applied(upgraded("1"), second, NEW, changed=True)["spec"] == first["spec"]
    assert image_of(applied(upgraded("2"), second, NEW)) == NEW


def test_the_default_image_is_known_from_the_pods_too() -> None:
    first = applied(service(), None, OLD)
    del first["metadata"]["annotations"][names.DEFAULT_IMAGE_ANNOTATION]
    assert applied(service(), first, NEW)["spec"] == first["spec"]


def test_nothing_waits_after_the_upgrade() -> None:
    """Applied, not left out: a copy that `kubectl rollout undo` brought back would stay."""
    assert waiting(applied(upgraded("1"), applied(service(), None, OLD), NEW)) == ""
