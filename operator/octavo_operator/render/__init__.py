"""`render(service)`: the objects that an InferenceService becomes. Pure: no cluster, no clock.

The same objects go to the API server (`apply`), to the screen (`octavo render`) and to local
processes (`octavo up`). Owner references are the business of `apply`, which knows the live object's
uid.
"""

from __future__ import annotations

from typing import Any

from octavo_operator import names
from octavo_operator.installation import Installation
from octavo_operator.render.autoscaler import render_autoscaler
from octavo_operator.render.deployment import render_deployment
from octavo_operator.render.disruption_budget import render_disruption_budget
from octavo_operator.render.http_route import render_http_route
from octavo_operator.render.inference_pool import render_inference_pool
from octavo_operator.render.network_policy import render_network_policy
from octavo_operator.render.service import render_service
from octavo_operator.spec import InferenceService

__all__ = [
    "ALWAYS",
    "AUTOSCALERS",
    "ROUTES",
    "SOMETIMES",
    "render",
    "render_autoscaler",
    "render_deployment",
    "render_disruption_budget",
    "render_http_route",
    "render_inference_pool",
    "render_network_policy",
    "render_service",
]

ALWAYS = {"Deployment": "apps/v1", "Service": "v1", "PodDisruptionBudget": "policy/v1"}
"""Kind to API version of the objects that every service has."""

SOMETIMES = {"NetworkPolicy": "networking.k8s.io/v1"}
"""Of those that some manifests ask for: they are deleted when theirs does not any more. The
Deployment names them (EXTRAS_ANNOTATION), so that nothing else is looked for in each pass."""

ROUTES = {
    "InferencePool": "inference.networking.k8s.io/v1",
    "HTTPRoute": "gateway.networking.k8s.io/v1",
}
"""As SOMETIMES, but of APIs that a cluster may lack: their troubles are RoutingReady's alone. They
are applied in this order: nothing points at what is not there."""

AUTOSCALERS = {"HorizontalPodAutoscaler": "autoscaling/v2"}
"""As SOMETIMES, but its troubles are AutoscalingReady's alone: what is there serves on."""

ASIDE = {**ROUTES, **AUTOSCALERS}
"""What a pass makes after all else, and apart from it."""


def render(
    service: InferenceService,
    *,
    image: str = names.DEFAULT_IMAGE,
    replicas: int | None = None,
    installation: Installation = Installation(),
    fetches: bool = True,
) -> list[dict[str, Any]]:
    """The objects in the order in which they are applied.

    `image` is the server's image where the manifest names none; `replicas` the live number, which
    stays where the manifest has none (None: the Deployment does not exist yet); `installation` what
    holds for all services; `fetches`: the server's image knows `octavo fetch`.
    """
    objects = [
        render_deployment(
            service, image=image, replicas=replicas, installation=installation, fetches=fetches
        ),
        render_service(service),
        render_disruption_budget(service),
        *render_autoscaler(service),
        *render_inference_pool(service),
        *render_http_route(service),
    ]
    if service.spec.network_policy is not None:
        objects.append(render_network_policy(service, installation.namespace))
    return objects
