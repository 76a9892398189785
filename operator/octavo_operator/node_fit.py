"""Whether a node may have a pod: what the scheduler's filters ask of both. Pure.

Selector, required affinity to nodes, taints, and room; what depends on other pods (spread,
affinity to pods, volumes) is the scheduler's alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from octavo_operator.pod_requests import Amounts
from octavo_operator.quantity import parse_quantity

_UNSTATED = Decimal("Infinity")


def may_take(node: Mapping[str, Any], pod_spec: Mapping[str, Any]) -> bool:
    """Whether the node takes new pods, and this one, however much of it is free."""
    spec, labels = node.get("spec") or {}, node["metadata"].get("labels") or {}
    if spec.get("unschedulable"):
        return False
    selector = pod_spec.get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in selector.items()):
        return False
    if not _is_near(node["metadata"]["name"], labels, pod_spec.get("affinity") or {}):
        return False
    tolerations = pod_spec.get("tolerations") or ()
    return all(
        any(_tolerates(each, taint) for each in tolerations)
        for taint in spec.get("taints") or ()
        if taint.get("effect") in ("NoSchedule", "NoExecute")
    )


def allocatable_of(node: Mapping[str, Any]) -> dict[str, Decimal]:
    """What a node has for pods."""
    found = (node.get("status") or {}).get("allocatable") or {}
    return {name: parse_quantity(amount) for name, amount in found.items()}


def has_room(allocatable: Amounts, held: Amounts, wanted: Amounts) -> bool:
    """Whether what is `held` leaves `wanted`. A device that a node does not name it does not have;
    of CPU and memory it may say nothing.
    """
    return all(
        allocatable.get(name, Decimal(0) if "/" in name else _UNSTATED) - held.get(name, Decimal(0))
        >= amount
        for name, amount in wanted.items()
    )


def _is_near(name: str, labels: Mapping[str, str], affinity: Mapping[str, Any]) -> bool:
    required = (affinity.get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if not required:
        return True
    fields = {"metadata.name": name}
    return any(  # one term is enough, all of it; an empty one means no node
        (term.get("matchExpressions") or term.get("matchFields"))
        and all(_matches(labels, each) for each in term.get("matchExpressions") or ())
        and all(_matches(fields, each) for each in term.get("matchFields") or ())
        for term in required.get("nodeSelectorTerms") or ()
    )


def _matches(labels: Mapping[str, str], rule: Mapping[str, Any]) -> bool:
    """https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1: one
    requirement of a node selector.
    """
    found, values = labels.get(rule["key"]), rule.get("values") or []
    match rule["operator"]:
        case "In":
            return found in values
        case "NotIn":
            return found not in values
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None
        case "Gt" | "Lt" as operator if found is not None and found.lstrip("-").isdecimal():
            try:
                bound = int(values[0])
            except (LookupError, ValueError):
                return False  # the API server will refuse it
            return int(found) > bound if operator == "Gt" else int(found) < bound
    return False


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if not toleration.get("key"):
        return toleration.get("operator") == "Exists"
    if toleration["key"] != taint.get("key"):
        return False
    return toleration.get("operator") == "Exists" or (
        (toleration.get("value") or "") == (taint.get("value") or "")
    )
