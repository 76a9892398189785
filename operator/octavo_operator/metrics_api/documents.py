"""The answers' JSON: discovery, values, and errors as metav1.Status. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from octavo_operator import names
from octavo_operator.metrics_api.figures import FIGURES
from octavo_operator.metrics_api.questions import GROUP, VERSIONS
from octavo_operator.quantity import write_quantity

Object = dict[str, Any]

SERVICES = f"{names.PLURAL}.{names.GROUP}"
PODS = "pods"
RESOURCES = {SERVICES: (names.API_VERSION, names.KIND), PODS: ("v1", "Pod")}
"""API version and kind of what has metrics."""

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    500: "InternalError",
    503: "ServiceUnavailable",
}


class Refusal(Exception):
    """An answer that is an error: its HTTP status, and words for people."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Item:
    """A metric's value of one object, taken `at` (seconds since 1970)."""

    resource: str
    namespace: str
    name: str
    metric: str
    value: float
    at: float


def describe_groups() -> Object:
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group()]}


def describe_group() -> Object:
    return {"kind": "APIGroup", "apiVersion": "v1", **_group()}


def _group() -> Object:
    versions = [{"groupVersion": f"{GROUP}/{each}", "version": each} for each in VERSIONS]
    return {"name": GROUP, "versions": versions, "preferredVersion": versions[0]}


def describe_resources(version: str) -> Object:
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{GROUP}/{version}",
        "resources": [
            {
                "name": f"{resource}/{metric}",
                "singularName": "",
                "namespaced": True,
                "kind": "MetricValueList",
                "verbs": ["get"],
            }
            for resource in RESOURCES
            for metric in FIGURES
        ],
    }


def describe_values(version: str, items: Iterable[Item]) -> Object:
    return {
        "kind": "MetricValueList",
        "apiVersion": f"{GROUP}/{version}",
        "metadata": {},
        "items": [_item(version, each) for each in items],
    }


def _item(version: str, item: Item) -> Object:
    api_version, kind = RESOURCES[item.resource]
    metric: Object = {"metric": {"name": item.metric, "selector": None}}
    if version == "v1beta1":
        metric = {"metricName": item.metric, "selector": None}
    return {
        "describedObject": {
            "kind": kind,
            "namespace": item.namespace,
            "name": item.name,
            "apiVersion": api_version,
        },
        **metric,
        "timestamp": datetime.fromtimestamp(item.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "value": write_quantity(item.value),
    }


def describe_refusal(refusal: Refusal) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": str(refusal),
        "reason": _REASONS.get(refusal.code, "Unknown"),
        "code": refusal.code,
    }
