"""The InferencePool: the pods of a service, among which an endpoint picker chooses."""

from __future__ import annotations

from typing import Any

from octavo_operator import names
from octavo_operator.spec import InferenceService


def render_inference_pool(service: InferenceService) -> list[dict[str, Any]]:
    """One, or none. Its picker is a Service of the same namespace that somebody else runs."""
    routing = service.spec.routing
    if routing is None or routing.inference_pool is None:
        return []
    picker = routing.inference_pool.endpoint_picker
    return [
        {
            "apiVersion": "inference.networking.k8s.io/v1",
            "kind": "InferencePool",
            "metadata": {
                "name": service.name,
                "namespace": service.namespace,
                "labels": names.labels(service.name),
            },
            "spec": {
                "selector": {"matchLabels": names.selector(service.name)},
                "targetPorts": [{"number": names.PORT}],
                "endpointPickerRef": {
                    "group": "",
                    "kind": "Service",
                    "name": picker.name,
                    "port": {"number": picker.port},
                    "failureMode": picker.failure_mode,
                },
            },
        }
    ]
