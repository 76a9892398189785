"""The HorizontalPodAutoscaler: the InferenceService's /scale, by figures of the metrics API."""

from __future__ import annotations

from typing import Any

from octavo_operator import names
from octavo_operator.quantity import write_quantity
from octavo_operator.scaling_targets import ScalingTarget, decide_targets
from octavo_operator.spec import InferenceService

START_SECONDS = 120
"""In which the number of pods may double, or grow by two. A pod takes minutes to load its model,
and the queue grows on meanwhile: without a bound each look at it would ask for more.
"""

CALM_SECONDS = 300
"""Of which the highest wish counts before pods go: what starts slowly should not go for a pause."""

BEHAVIOR: dict[str, Any] = {
    "scaleUp": {
        "stabilizationWindowSeconds": 0,
        "selectPolicy": "Max",
        "policies": [
            {"type": "Percent", "value": 100, "periodSeconds": START_SECONDS},
            {"type": "Pods", "value": 2, "periodSeconds": START_SECONDS},
        ],
    },
    "scaleDown": {
        "stabilizationWindowSeconds": CALM_SECONDS,
        "selectPolicy": "Max",
        "policies": [
            {"type": "Percent", "value": 20, "periodSeconds": 60},
            {"type": "Pods", "value": 1, "periodSeconds": 60},
        ],
    },
}


def render_autoscaler(service: InferenceService) -> list[dict[str, Any]]:
    """None without spec.autoscaling, for another provider, and while the service is suspended: it
    would wake it.
    """
    scaling = service.spec.autoscaling
    if scaling is None or scaling.provider != "HPA" or service.spec.suspend:
        return []
    reference = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": service.name}
    behavior = {
        direction: {**usual, **scaling.behavior.get(direction, {})}
        for direction, usual in BEHAVIOR.items()
    }
    return [
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {
                "name": service.name,
                "namespace": service.namespace,
                "labels": names.labels(service.name),
            },
            "spec": {
                "scaleTargetRef": reference,
                # 0 is a gate of the cluster's that is mostly closed.
                "minReplicas": max(1, scaling.min_replicas),
                "maxReplicas": scaling.max_replicas,
                "metrics": [_metric(each, reference) for each in decide_targets(service)],
                "behavior": behavior,
            },
        }
    ]


def _metric(target: ScalingTarget, reference: dict[str, str]) -> dict[str, Any]:
    amount = write_quantity(target.value)
    goal = {"type": "AverageValue", "averageValue": amount}
    if not target.shared:
        goal = {"type": "Value", "value": amount}
    return {
        "type": "Object",
        "object": {
            "describedObject": reference,
            "metric": {"name": target.metric},
            "target": goal,
        },
    }
