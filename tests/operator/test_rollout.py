"""Why pods roll: in words, without secrets, and still known after the operator was restarted."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.services import service

from octavo_operator import names
from octavo_operator.render import render, render_deployment
from octavo_operator.render.settings import OPERATOR_CHANGED
from octavo_operator.rollout import CREATED, decide_cause, rolls, with_cause


def deployment(image: str = "i:1", **arguments: Any) -> dict[str, Any]:
    return render(service(**arguments), image=image)[0]


def env(value: str) -> dict[str, Any]:
    return {"engine": {"env": [{"name": "PASSWORD", "value": value}]}}


def secret(name: str) -> dict[str, Any]:
    return {"model": {"secretRef": {"name": name}}}


@pytest.mark.parametrize(
    ("before", "after", "cause"),
    [
        (
            {"engine": {"maxModelLen": 2048}},
            {"engine": {"maxModelLen": 1024}},
            "spec.engine.maxModelLen: 2048 -> 1024",
        ),
        ({}, {"engine": {"maxNumSeqs": 8}}, "spec.engine.maxNumSeqs: (none) -> 8"),
        ({"uri": "hf://a/b"}, {"uri": "hf://a/c"}, "spec.model.uri: hf://a/b -> hf://a/c"),
        (env("old"), env("new"), "spec.engine.env[PASSWORD].value: changed"),
        ({}, env("new"), "spec.engine.env[PASSWORD].value: added"),
        (secret("a"), secret("b"), "spec.model.secretRef.name: a -> b"),
        (
            {"engine": {"extraArgs": ["--hub-token=x"]}},
            {"engine": {"extraArgs": ["--hub-token=y"]}},
            "spec.engine.extraArgs: changed",
        ),
        (
            {"podTemplate": {"spec": {"nodeSelector": {"gpu": "a"}}}},
            {"podTemplate": {"spec": {"nodeSelector": {"gpu": "b"}}}},
            "spec.podTemplate.spec.nodeSelector.gpu: a -> b",
        ),
        (
            {"resources": {"limits": {"memory": "1Gi"}}},
            {"resources": {"limits": {"memory": "2Gi"}}},
            "spec.resources.limits.memory: 1Gi -> 2Gi",
        ),
        ({"image": "i:1"}, {"image": "i:2"}, "spec.engine.image: i:1 -> i:2"),
    ],
)
def test_cause(before: dict[str, Any], after: dict[str, Any], cause: str) -> None:
    assert decide_cause(deployment(**before), deployment(**after)) == cause


def test_several_changes() -> None:
    many = {"maxModelLen": 64, "maxNumSeqs": 2, "blockSize": 32, "dtype": "float32"}
    more = {**many, "maxNumBatchedTokens": 64, "enablePrefixCaching": False}
    cause = decide_cause(deployment(), deployment(engine=more))
    assert cause.endswith("; and 1 more")
    assert "spec.engine.blockSize: (none) -> 32; " in cause


def test_first_and_unchanged() -> None:
    first = with_cause(None, deployment())
    annotations = first["metadata"]["annotations"]
    assert annotations[names.CHANGE_CAUSE_ANNOTATION] == CREATED
    annotations[names.CHANGE_CAUSE_ANNOTATION] = "the last reason"
    assert decide_cause(first, deployment(replicas=7)) == "the last reason"


@pytest.mark.parametrize("kept", ["", "no JSON", "[]", None])
def test_lost_annotation(kept: str | None) -> None:
    live = deployment()
    annotations = live["metadata"]["annotations"]
    pods = live["spec"]["template"]["metadata"]["annotations"]
    annotations[names.REVISION_ANNOTATION] = pods[names.REVISION_ANNOTATION] = "older"
    annotations[names.RENDERED_ANNOTATION] = kept
    if kept is None:
        del annotations[names.RENDERED_ANNOTATION]
    assert decide_cause(live, deployment()) == OPERATOR_CHANGED


def test_a_revision_that_somebody_wrote_on_the_deployment_rolls_nothing() -> None:
    live = with_cause(None, deployment())
    live["metadata"]["annotations"][names.REVISION_ANNOTATION] = "mine"
    assert not rolls(live, deployment())
    marked = live["spec"]["template"]["metadata"]["annotations"]
    live["metadata"]["annotations"][names.REVISION_ANNOTATION] = marked[names.REVISION_ANNOTATION]
    marked[names.REVISION_ANNOTATION] = "mine"
    assert not rolls(live, deployment())
    assert decide_cause(live, deployment()) == CREATED


def test_a_huge_pod_template_fits_an_annotation() -> None:
    annotations = {f"k{i}": "x" * 60000 for i in range(3)}
    made = deployment(podTemplate={"metadata": {"annotations": annotations}})
    assert len(made["metadata"]["annotations"][names.RENDERED_ANNOTATION]) < 1000


def test_the_order_of_variables_is_a_cause() -> None:
    one, two = {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)"}
    before, after = (deployment(engine={"env": env}) for env in ([one, two], [two, one]))
    assert decide_cause(before, after) == "spec.engine.env: order changed"


def test_removed_annotations_are_no_rollout() -> None:
    live = with_cause(None, deployment())
    annotations = live["metadata"]["annotations"]
    annotations[names.CHANGE_CAUSE_ANNOTATION] = "the last reason"
    revision = annotations.pop(names.REVISION_ANNOTATION)
    assert decide_cause(live, deployment()) == "the last reason"
    annotations.clear()
    told = {"revision": revision, "reason": "the last reason"}
    assert decide_cause(live, deployment(), told) == "the last reason"


def test_large_environments_fit_into_the_annotations() -> None:
    def large(letter: str) -> dict[str, Any]:
        return deployment(
            engine={"env": [{"name": f"V{i}", "value": letter * 32000} for i in range(10)]}
        )

    annotations = large("x")["metadata"]["annotations"]
    assert sum(len(key) + len(value) for key, value in annotations.items()) < 20_000
    assert "spec.engine.env[V0].value: changed" in decide_cause(large("x"), large("y"))


def test_what_the_operator_alone_reads_rolls_nothing() -> None:
    without, told = (
        render_deployment(service(model=model), image="i", replicas=1)
        for model in ({}, {"config": {"hidden_size": 1}})
    )
    assert without == told
