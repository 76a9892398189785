"""An autoscaler comes and goes with its field, and its troubles are AutoscalingReady's alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.operator.memory_cluster import MemoryCluster
from tests.operator.services import service

from octavo_operator import names
from octavo_operator.autoscaler_status import looks_of
from octavo_operator.autoscalers import KEPT_SECONDS, Neighbours

KIND = "HorizontalPodAutoscaler"
SCALED = {"maxReplicas": 4}


def scaled(**spec: Any) -> MemoryCluster:
    cluster = MemoryCluster(autoscaling=SCALED, **spec)
    cluster.pass_over()
    return cluster


def said(cluster: MemoryCluster) -> tuple[str, str]:
    found = cluster.pass_over()["AutoscalingReady"]
    return found["status"], found["reason"]


def says(cluster: MemoryCluster, *conditions: tuple[str, str, str]) -> None:
    """What its controller writes into its status."""
    told = [
        {"type": kind, "status": status, "reason": reason, "message": "its own words"}
        for kind, status, reason in conditions
    ]
    cluster.objects[KIND]["status"] = {"conditions": told}


def test_a_service_without_asks_for_nothing_more() -> None:
    cluster = MemoryCluster()
    cluster.pass_over()
    assert "AutoscalingReady" not in cluster.pass_over()
    assert KIND not in {*cluster.asked, *cluster.objects}


def test_it_is_made_after_the_deployment_names_it_and_goes_with_the_field() -> None:
    cluster = scaled()
    made = cluster.objects[KIND]
    assert made["metadata"]["ownerReferences"][0]["uid"] == "u1"
    assert made["spec"]["scaleTargetRef"]["kind"] == names.KIND
    annotations = cluster.deployment["metadata"]["annotations"]
    assert annotations[names.EXTRAS_ANNOTATION] == KIND
    template = cluster.deployment["spec"]["template"]
    cluster.edit(autoscaling=None)
    assert "AutoscalingReady" not in cluster.pass_over()
    assert KIND not in cluster.objects
    cluster.pass_over()
    cluster.pass_over()
    assert KIND not in cluster.asked
    assert cluster.deployment["spec"]["template"] == template


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ((), ("Unknown", "AwaitingAutoscaler")),
        ((("AbleToScale", "True", "Ready"),), ("Unknown", "AwaitingAutoscaler")),
        (
            (("AbleToScale", "True", "Ready"), ("ScalingActive", "True", "ValidMetricFound")),
            ("True", "Scaling"),
        ),
        (
            (("ScalingActive", "False", "FailedGetObjectMetric"),),
            ("False", "NoMetrics"),
        ),
        ((("AbleToScale", "False", "FailedGetScale"),), ("False", "TargetUnusable")),
    ],
)
def test_what_it_says_of_itself_is_told(
    conditions: tuple[tuple[str, str, str], ...], expected: tuple[str, str]
) -> None:
    cluster = scaled()
    says(cluster, *conditions)
    assert said(cluster) == expected
    if expected[0] == "False":
        told = {each["type"]: each for each in cluster.live["status"]["conditions"]}
        assert "its own words" in told["AutoscalingReady"]["message"]
        assert told["WorkloadReady"]["reason"] == "Progressing"  # untouched


def test_asleep_for_its_owner_it_has_none() -> None:
    cluster = scaled()
    cluster.edit(suspend=True)
    assert said(cluster) == ("False", "Suspended")
    assert KIND not in cluster.objects
    cluster.edit(suspend=False)
    assert said(cluster) == ("Unknown", "AwaitingAutoscaler")
    assert KIND in cluster.objects


def another(kind: str = names.KIND, version: str = names.API_VERSION) -> dict[str, Any]:
    target = {"apiVersion": version, "kind": kind, "name": "tiny"}
    return {
        "metadata": {"name": "theirs", "namespace": "ns", "uid": "x"},
        "spec": {"scaleTargetRef": target},
    }


@pytest.mark.parametrize("target", [(), ("Deployment", "apps/v1")])
def test_a_second_one_is_named_and_not_fought(target: tuple[str, ...]) -> None:
    cluster = MemoryCluster(autoscaling=SCALED)
    cluster.autoscalers = [another(*target)]
    cluster.pass_over()
    assert said(cluster) == ("False", "SecondAutoscaler")
    assert KIND not in cluster.objects
    told = cluster.pass_over()["AutoscalingReady"]["message"]
    assert "the HorizontalPodAutoscaler theirs scales it, too" in told
    cluster.edit(autoscaling={**SCALED, "provider": "None"})
    assert said(cluster) == ("True", "NotManaged")
    cluster.autoscalers = []
    assert said(cluster) == ("Unknown", "NotManaged")


def test_others_of_the_namespace_are_no_concern() -> None:
    cluster = MemoryCluster(autoscaling=SCALED)
    other = another()
    other["spec"]["scaleTargetRef"]["name"] = "someone"
    cluster.autoscalers = [other, another("StatefulSet", "apps/v1")]
    cluster.pass_over()
    assert said(cluster) == ("Unknown", "AwaitingAutoscaler")


def test_one_of_somebody_else_of_that_name_is_left_alone_and_all_else_works() -> None:
    cluster = MemoryCluster(autoscaling=SCALED)
    theirs = {
        "kind": KIND,
        "metadata": {"name": "tiny", "namespace": "ns", "uid": "theirs"},
        "spec": {"scaleTargetRef": {"kind": "StatefulSet", "name": "tiny"}},
    }
    cluster.objects[KIND] = theirs
    cluster.pass_over()
    assert said(cluster) == ("False", "NameConflict")
    assert cluster.objects[KIND] == theirs
    assert cluster.container["name"] == names.CONTAINER
    cluster.edit(autoscaling=None)
    cluster.pass_over()
    assert cluster.objects[KIND] == theirs


@pytest.mark.parametrize("way", ["refused", "hidden"])
def test_a_missing_right_is_told_and_holds_nothing_up(way: str) -> None:
    cluster = MemoryCluster(autoscaling=SCALED)
    setattr(cluster, way, (KIND,))
    cluster.pass_over()
    assert said(cluster) == ("False", "Forbidden")
    assert cluster.live["status"]["conditions"][0]["reason"] == "Progressing"
    setattr(cluster, way, ())
    assert said(cluster) == ("Unknown", "AwaitingAutoscaler")


def test_its_figures_ask_for_no_pass() -> None:
    one = {"spec": {"maxReplicas": 4}, "status": {"currentMetrics": [1], "desiredReplicas": 2}}
    other = {"spec": {"maxReplicas": 4}, "status": {"currentMetrics": [2], "desiredReplicas": 3}}
    assert looks_of(one) == looks_of(other)

    def failing(words: str) -> Any:
        told = [{"type": "ScalingActive", "status": "False", "reason": "x", "message": words}]
        return looks_of({**one, "status": {"conditions": told}})

    assert failing("") != looks_of(one)
    assert failing("no sample for 31 s (2 of 2)") == failing("no sample for 34 s (2 of 2)")
    assert failing("no sample for 31 s (1 of 2)") != failing("no sample for 31 s (2 of 2)")
    assert looks_of({**one, "spec": {"maxReplicas": 5}}) != looks_of(one)


def test_who_has_the_metrics_is_told_where_there_are_none() -> None:
    cluster = scaled()
    says(
        cluster, ("AbleToScale", "True", "Ok"), ("ScalingActive", "False", "FailedGetObjectMetric")
    )

    def message(made_by: str = "") -> str:
        if made_by:
            labels = {"app.kubernetes.io/name": made_by, names.MANAGED_BY_LABEL: made_by}
            cluster.objects["APIService"] = {
                "metadata": {"name": "v1beta1.custom.metrics.k8s.io", "labels": labels},
                "spec": {"service": {"namespace": "monitoring", "name": "adapter"}},
            }
        found = cluster.pass_over()["AutoscalingReady"]
        assert found["reason"] == "NoMetrics"
        return str(found["message"])

    assert "metricsApi.enabled" in message()
    assert "its own words" in message("octavo")
    assert "belongs to monitoring/adapter" in message("adapter")
    cluster.hidden = ("APIService",)
    assert "its own words" in message()
    says(cluster, ("AbleToScale", "True", "Ok"), ("ScalingActive", "True", "ValidMetricFound"))
    cluster.pass_over()
    assert "APIService" not in cluster.asked


def test_a_namespace_is_listed_once_for_all_of_its_services() -> None:
    """As many services ask as there are autoscalers in the answer."""
    cluster: Any = MemoryCluster()
    cluster.autoscalers = [another()]
    now = 0.0
    neighbours = Neighbours(cluster, lambda: now)

    def others() -> list[str]:
        return asyncio.run(neighbours.others(service(), None))

    for _ in range(9):
        assert others() == ["theirs"]
    assert cluster.asked == [KIND]
    cluster.autoscalers = []
    now = KEPT_SECONDS
    assert others() == [] and cluster.asked == [KIND] * 2


def test_the_end_of_a_second_one_is_seen_without_an_event() -> None:
    cluster = MemoryCluster(autoscaling=SCALED)
    cluster.autoscalers = [another()]
    cluster.pass_over()
    assert cluster.again is not None
    cluster.autoscalers = []
    cluster.pass_over()
    assert cluster.again is None
