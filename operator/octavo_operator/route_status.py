"""What Gateways say of a service's HTTPRoute and InferencePool, as RoutingReady. Pure.

Gateways' controllers write it into the objects' status, one entry a parent. Words about an older
generation do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from octavo_operator.conditions import (
    AWAITING_GATEWAY,
    NOT_ACCEPTED,
    REFS_NOT_RESOLVED,
    ROUTED,
    ROUTING_READY,
    Condition,
)

_REASONS = {"Accepted": NOT_ACCEPTED, "ResolvedRefs": REFS_NOT_RESOLVED}

Object = Mapping[str, Any]


def decide_routing(route: Object, pool: Object | None) -> Condition:
    """True once every Gateway of the live `route` has accepted it and found its backend.

    `pool` is the live InferencePool, None if the route goes to the Service: of it only what is
    refused counts, since not every controller writes about pools.
    """
    awaited = []
    for parent in route["spec"]["parentRefs"]:
        name = _name_of(parent, route)
        told = [
            words
            for entry in _entries(route)
            if _identity(entry["parentRef"], route) == _identity(parent, route)
            for words in _told(entry, route)
        ]
        if refusal := _refusal(f"Gateway {name}", "HTTPRoute", told):
            return refusal
        if not any(_is(each, "Accepted", "True") for each in told) or any(
            _is(each, "ResolvedRefs", "Unknown") for each in told
        ):
            awaited.append(name)
    for entry in [] if pool is None else _entries(pool):
        name = _name_of(entry["parentRef"], route)
        assert pool is not None
        if refusal := _refusal(f"Gateway {name}", "InferencePool", list(_told(entry, pool))):
            return refusal
    if awaited:
        return Condition(
            ROUTING_READY,
            "Unknown",
            AWAITING_GATEWAY,
            f"Gateway {', '.join(awaited)} has not answered yet; if it stays silent, it does not "
            "exist, or no controller serves its class",
        )
    parents = ", ".join(_name_of(each, route) for each in route["spec"]["parentRefs"])
    hosts = ", ".join(route["spec"].get("hostnames") or ("any host",))
    return Condition(ROUTING_READY, "True", ROUTED, f"Gateway {parents} takes requests for {hosts}")


def _refusal(who: str, kind: str, told: list[Object]) -> Condition | None:
    for about, reason in _REASONS.items():
        for each in told:
            if _is(each, about, "False"):
                words = f"{who} on the {kind}: {each.get('reason', about)}: {each.get('message')}"
                return Condition(ROUTING_READY, "False", reason, words)
    return None


def _entries(live: Object) -> list[Object]:
    return [each for each in (live.get("status") or {}).get("parents") or [] if "parentRef" in each]


def _told(entry: Object, live: Object) -> Iterator[Object]:
    """An entry's conditions, if they are about the object as it is now."""
    for each in entry.get("conditions") or []:
        if each.get("observedGeneration", 0) >= live["metadata"].get("generation", 0):
            yield each


def _is(condition: Object, about: str, status: str) -> bool:
    return (condition.get("type"), condition.get("status")) == (about, status)


def _identity(parent: Object, live: Object) -> tuple[str, str, str]:
    namespace = parent.get("namespace") or live["metadata"]["namespace"]
    return namespace, parent["name"], parent.get("sectionName") or ""


def _name_of(parent: Object, live: Object) -> str:
    return "/".join(each for each in _identity(parent, live) if each)
