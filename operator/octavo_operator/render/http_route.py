"""The HTTPRoute: which requests that come to a Gateway go to the service."""

from __future__ import annotations

from typing import Any

from octavo_operator import names
from octavo_operator.routing import GatewayRef
from octavo_operator.spec import InferenceService

OPENAI_API = "/v1"
"""What is let through unless paths are named: /metrics, /load and the like stay inside."""


def render_http_route(service: InferenceService) -> list[dict[str, Any]]:
    """One, or none. Its backend is the InferencePool if there is one, else the Service."""
    routing = service.spec.routing
    if routing is None:
        return []
    backend: dict[str, Any] = {
        "group": "", "kind": "Service", "name": service.name, "port": names.SERVICE_PORT
    }  # fmt: skip
    if routing.inference_pool is not None:
        backend = {
            "group": "inference.networking.k8s.io", "kind": "InferencePool", "name": service.name
        }  # fmt: skip
    paths = routing.paths or (OPENAI_API,)
    return [
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {
                "name": service.name,
                "namespace": service.namespace,
                "labels": names.labels(service.name),
            },
            "spec": {
                "parentRefs": [_parent(each) for each in routing.gateways],
                **({"hostnames": list(routing.hostnames)} if routing.hostnames else {}),
                "rules": [
                    {
                        "matches": [
                            {"path": {"type": "PathPrefix", "value": path}} for path in paths
                        ],
                        "backendRefs": [backend],
                    }
                ],
            },
        }
    ]


def _parent(gateway: GatewayRef) -> dict[str, Any]:
    return {
        "group": "gateway.networking.k8s.io",
        "kind": "Gateway",
        "name": gateway.name,
        **({"namespace": gateway.namespace} if gateway.namespace is not None else {}),
        **({"sectionName": gateway.section_name} if gateway.section_name is not None else {}),
    }
