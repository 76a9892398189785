"""The PodDisruptionBudget: a drained node takes one pod of a service at a time."""

from __future__ import annotations

from typing import Any

from octavo_operator import names
from octavo_operator.spec import InferenceService


def render_disruption_budget(service: InferenceService) -> dict[str, Any]:
    """Also of one replica, which it lets go: so nothing is to be deleted when the number falls."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": service.name,
            "namespace": service.namespace,
            "labels": names.labels(service.name),
        },
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": names.selector(service.name)},
            # A pod that is not ready serves nobody: it never keeps a node from being drained.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
