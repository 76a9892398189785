"""What a pod asks of its node, as the scheduler counts it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from octavo_operator.names import is_gpu
from octavo_operator.quantity import parse_quantity

Amounts = Mapping[str, Decimal]
"""By resource name, in base units."""

_NONE = Decimal(0)


def requests_of(pod_spec: Mapping[str, Any]) -> dict[str, Decimal]:
    """Of all containers together, or of the largest init container if that is more.

    Sidecars (init containers that are restarted always) run beside those after them (KEP-753).
    A limit without a request is one.
    """
    sidecars: Amounts = {}
    first: Amounts = {}
    for each in pod_spec.get("initContainers") or ():
        beside = add(sidecars, _of_container(each))
        first = _larger(first, beside)
        if each.get("restartPolicy") == "Always":
            sidecars = beside
    then = add(sidecars, *(_of_container(each) for each in pod_spec.get("containers") or ()))
    return add(_larger(first, then), _parsed(pod_spec.get("overhead") or {}))


def held_by(pods: Iterable[Mapping[str, Any]]) -> dict[str, Decimal]:
    """What pods hold that have not ended; "pods" is how many they are."""
    living = [
        {**requests_of(pod["spec"]), "pods": Decimal(1)}
        for pod in pods
        if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
    ]
    return add(*living)


def add(*amounts: Amounts) -> dict[str, Decimal]:
    """Their sums by name."""
    names = {name for each in amounts for name in each}
    return {name: sum((each.get(name, _NONE) for each in amounts), _NONE) for name in names}


def gpus_of(pod_spec: Mapping[str, Any]) -> tuple[str, int]:
    """The resource name of a pod's GPUs, and how many; ("", 0) of a pod without."""
    for container in pod_spec.get("containers") or ():
        limits = (container.get("resources") or {}).get("limits") or {}
        for name, amount in limits.items():
            if is_gpu(name):
                return name, int(parse_quantity(amount))
    return "", 0


def pod_name(pod: Mapping[str, Any]) -> str:
    """Among those of all namespaces."""
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _of_container(container: Mapping[str, Any]) -> dict[str, Decimal]:
    resources = container.get("resources") or {}
    return _parsed({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _parsed(amounts: Mapping[str, Any]) -> dict[str, Decimal]:
    return {name: parse_quantity(amount) for name, amount in amounts.items()}


def _larger(a: Amounts, b: Amounts) -> dict[str, Decimal]:
    return {name: max(a.get(name, _NONE), b.get(name, _NONE)) for name in {*a, *b}}
