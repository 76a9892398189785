"""What one installation of the operator says of all its services, beside their manifests."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo_operator import names
from octavo_operator.pod_defaults import PodDefaults


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """`namespace` is the operator's own; "" where it runs outside the cluster."""

    namespace: str = ""
    gpu_resource: str = names.GPU_RESOURCE
    defaults: PodDefaults = field(default_factory=PodDefaults)
