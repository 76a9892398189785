"""From what Gateways wrote to RoutingReady."""

from __future__ import annotations

from typing import Any

from octavo_operator.conditions import Condition
from octavo_operator.route_status import decide_routing

PUBLIC = {"name": "public", "namespace": "gateways", "sectionName": "https"}
INSIDE = {"name": "inside"}


def route(*entries: dict[str, Any], parents: Any = (PUBLIC,), **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "a", "namespace": "ns", "generation": 2},
        "spec": {"parentRefs": list(parents), **spec},
        "status": {"parents": list(entries)},
    }


def entry(parent: dict[str, Any], generation: int = 2, **conditions: str) -> dict[str, Any]:
    """`Accepted="True"`, or `Accepted="False Reason words"`."""
    told = []
    for kind, text in conditions.items():
        status, _, rest = text.partition(" ")
        reason, _, message = rest.partition(" ")
        told.append(
            {
                "type": kind,
                "status": status,
                "reason": reason or kind,
                "message": message,
                "observedGeneration": generation,
            }
        )
    return {"parentRef": parent, "controllerName": "example.com/x", "conditions": told}


def outcome(found: Condition) -> tuple[str, str]:
    return found.status, found.reason


def test_accepted_and_resolved() -> None:
    told = entry(PUBLIC, Accepted="True", ResolvedRefs="True")
    found = decide_routing(route(told, hostnames=["a.example.com", "b.example.com"]), None)
    assert outcome(found) == ("True", "Routed")
    assert "gateways/public/https" in found.message
    assert "a.example.com, b.example.com" in found.message


def test_nobody_has_answered() -> None:
    found = decide_routing(route(), None)
    assert outcome(found) == ("Unknown", "AwaitingGateway")
    assert "gateways/public/https" in found.message


def test_words_about_an_older_generation_do_not_count() -> None:
    told = entry(PUBLIC, 1, Accepted="True", ResolvedRefs="True")
    assert decide_routing(route(told), None).reason == "AwaitingGateway"
    told = entry(PUBLIC, 1, Accepted="False NoMatchingParent no")
    assert decide_routing(route(told), None).reason == "AwaitingGateway"


def test_the_gateways_words_are_passed_on() -> None:
    told = entry(PUBLIC, Accepted="False NotAllowedByListeners not from here", ResolvedRefs="True")
    found = decide_routing(route(told), None)
    assert outcome(found) == ("False", "NotAccepted")
    assert "NotAllowedByListeners: not from here" in found.message


def test_a_backend_that_is_not_found() -> None:
    told = entry(PUBLIC, Accepted="True", ResolvedRefs="False BackendNotFound no such pool")
    found = decide_routing(route(told), None)
    assert outcome(found) == ("False", "RefsNotResolved")
    assert "BackendNotFound: no such pool" in found.message


def test_every_gateway_counts_and_an_omitted_namespace_is_the_routes() -> None:
    public = entry(PUBLIC, Accepted="True", ResolvedRefs="True")
    both = (PUBLIC, INSIDE)
    found = decide_routing(route(public, parents=both), None)
    assert found.reason == "AwaitingGateway" and "ns/inside" in found.message
    assert "public" not in found.message
    inside = entry({**INSIDE, "namespace": "ns"}, Accepted="True")
    assert decide_routing(route(public, inside, parents=both), None).reason == "Routed"
    refused = entry(INSIDE, Accepted="False NoMatchingParent no")
    assert decide_routing(route(public, refused, parents=both), None).reason == "NotAccepted"


def test_another_section_is_another_parent() -> None:
    told = entry({**PUBLIC, "sectionName": "http"}, Accepted="True", ResolvedRefs="True")
    assert decide_routing(route(told), None).reason == "AwaitingGateway"


def test_a_pool_that_is_refused() -> None:
    told = entry(PUBLIC, Accepted="True", ResolvedRefs="True")
    pool = route(entry(PUBLIC, ResolvedRefs="False InvalidExtensionRef no picker"))
    found = decide_routing(route(told), pool)
    assert outcome(found) == ("False", "RefsNotResolved")
    assert "InferencePool" in found.message and "no picker" in found.message
    assert decide_routing(route(told), route()).reason == "Routed"


def test_what_is_no_answer() -> None:
    odd = {**route(), "status": {"parents": [{}, {"parentRef": PUBLIC}]}}
    assert decide_routing(odd, None).reason == "AwaitingGateway"
    unknown = entry(PUBLIC, Accepted="True", ResolvedRefs="Unknown Pending wait")
    assert decide_routing(route(unknown), None).reason == "AwaitingGateway"
