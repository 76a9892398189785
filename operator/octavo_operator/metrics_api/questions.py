"""What a path of custom.metrics.k8s.io asks for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

GROUP = "custom.metrics.k8s.io"
VERSIONS = ("v1beta2", "v1beta1")
"""The preferred one first."""

EVERY = "*"


@dataclass(frozen=True, slots=True)
class Groups:
    """/apis."""


@dataclass(frozen=True, slots=True)
class Group:
    """/apis/custom.metrics.k8s.io."""


@dataclass(frozen=True, slots=True)
class Resources:
    """/apis/custom.metrics.k8s.io/VERSION."""

    version: str


@dataclass(frozen=True, slots=True)
class Values:
    """A metric of one object, or with the name `*` of all that selectors let through."""

    version: str
    namespace: str
    resource: str
    name: str
    metric: str


Question = Groups | Group | Resources | Values


def read_path(raw: str) -> Question | None:
    """Of a path as it came, percent-encoded; None for one that asks for nothing there is."""
    parts = [unquote(part) for part in raw.strip("/").split("/")]
    match parts:
        case ["apis"]:
            return Groups()
        case ["apis", group] if group == GROUP:
            return Group()
        case ["apis", group, version] if group == GROUP and version in VERSIONS:
            return Resources(version)
        case ["apis", group, version, "namespaces", namespace, resource, name, metric] if (
            group == GROUP and version in VERSIONS and namespace and resource and name and metric
        ):
            return Values(version, namespace, resource, name, metric)
    return None
