"""The HorizontalPodAutoscaler of a manifest."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.services import service

from octavo_operator.render.autoscaler import BEHAVIOR, render_autoscaler
from octavo_operator.scaling_targets import DEFAULT_SLOTS
from octavo_server.config import EngineConfig


def targets(**scaling: Any) -> dict[str, str]:
    (made,) = render_autoscaler(
        service(autoscaling={"maxReplicas": 4, **scaling}, engine={"maxNumSeqs": 100})
    )
    found = {}
    for each in made["spec"]["metrics"]:
        assert each["type"] == "Object"
        assert each["object"]["describedObject"]["name"] == "tiny"
        target = each["object"]["target"]
        key = "averageValue" if target["type"] == "AverageValue" else "value"
        found[each["object"]["metric"]["name"]] = f"{target['type']} {target[key]}"
    return found


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({}, {"octavo_queue_depth": "AverageValue 5", "octavo_demand": "AverageValue 80"}),
        (
            {"targetQueueDepth": 2},
            {"octavo_queue_depth": "AverageValue 2", "octavo_demand": "AverageValue 80"},
        ),
        ({"targetDemand": 9}, {"octavo_demand": "AverageValue 9"}),
        (
            {"targetDemand": 9, "targetQueueDepth": 2},
            {"octavo_queue_depth": "AverageValue 2", "octavo_demand": "AverageValue 9"},
        ),
        ({"targetQueueWaitSeconds": 0.25}, {"octavo_queue_wait_seconds": "Value 250m"}),
    ],
)
def test_targets(scaling: dict[str, Any], expected: dict[str, str]) -> None:
    assert targets(**scaling) == expected


def test_a_pods_slots_are_the_servers() -> None:
    assert EngineConfig.__dataclass_fields__["max_num_seqs"].default == DEFAULT_SLOTS


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"suspend": True, "autoscaling": {"maxReplicas": 4}},
        {"autoscaling": {"maxReplicas": 4, "provider": "None"}},
    ],
)
def test_none(spec: dict[str, Any]) -> None:
    assert render_autoscaler(service(**spec)) == []


def test_it_never_goes_to_zero_itself() -> None:
    (made,) = render_autoscaler(service(autoscaling={"minReplicas": 0, "maxReplicas": 4}))
    assert (made["spec"]["minReplicas"], made["spec"]["maxReplicas"]) == (1, 4)


def test_a_behavior_replaces_ours_field_by_field() -> None:
    quick = {"scaleDown": {"stabilizationWindowSeconds": 5}}
    (made,) = render_autoscaler(service(autoscaling={"maxReplicas": 4, "behavior": quick}))
    behavior = made["spec"]["behavior"]
    assert behavior["scaleUp"] == BEHAVIOR["scaleUp"]
    assert behavior["scaleDown"] == {**BEHAVIOR["scaleDown"], "stabilizationWindowSeconds": 5}
