"""The Service: one stable address for the pods that are ready."""

from __future__ import annotations

from typing import Any

from octavo_operator import names
from octavo_operator.spec import InferenceService


def render_service(service: InferenceService) -> dict[str, Any]:
    exposure = service.spec.service
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service.name,
            "namespace": service.namespace,
            "labels": names.labels(service.name),
            **({"annotations": dict(exposure.annotations)} if exposure.annotations else {}),
        },
        "spec": {
            "type": exposure.type,
            "selector": names.selector(service.name),
            "ports": [
                {
                    "name": names.PORT_NAME,
                    "port": names.SERVICE_PORT,
                    "targetPort": names.PORT_NAME,
                    "protocol": "TCP",
                    "appProtocol": "http",
                }
            ],
        },
    }
