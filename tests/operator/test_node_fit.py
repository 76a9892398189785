"""A node and a pod, as the scheduler's filters see them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from octavo_operator.node_fit import has_room, may_take

NODE = {"metadata": {"name": "a", "labels": {"zone": "west", "gpus": "8", "empty": ""}}, "spec": {}}


def asking(*terms: dict[str, Any]) -> dict[str, Any]:
    key = "requiredDuringSchedulingIgnoredDuringExecution"
    return {"affinity": {"nodeAffinity": {key: {"nodeSelectorTerms": list(terms)}}}}


def rule(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (rule("zone", "In", "east", "west"), True),
        (rule("zone", "In", "east"), False),
        (rule("none", "In", "west"), False),
        (rule("zone", "NotIn", "west"), False),
        (rule("none", "NotIn", "west"), True),
        (rule("empty", "Exists"), True),
        (rule("none", "Exists"), False),
        (rule("none", "DoesNotExist"), True),
        (rule("empty", "DoesNotExist"), False),
        (rule("gpus", "Gt", "7"), True),
        (rule("gpus", "Gt", "8"), False),
        (rule("gpus", "Lt", "9"), True),
        (rule("zone", "Lt", "9"), False),
        (rule("none", "Gt", "0"), False),
        ({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}, True),
        ({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}, False),
        ({}, False),
    ],
)
def test_affinity(term: dict[str, Any], expected: bool) -> None:
    assert may_take(NODE, asking(term)) is expected
    assert may_take(NODE, asking(term, rule("zone", "In", "west")))
    both = {"matchExpressions": [*term.get("matchExpressions", []), {"key": "x", "operator": "In"}]}
    assert not may_take(NODE, asking(both))


def test_without_affinity() -> None:
    assert may_take(NODE, {})
    assert may_take(NODE, {"affinity": {"podAffinity": {}}})
    assert not may_take(NODE, asking())


def test_room() -> None:
    one, two = Decimal(1), Decimal(2)
    assert has_room({"cpu": two}, {"cpu": one}, {"cpu": one})
    assert not has_room({"cpu": two}, {"cpu": two}, {"cpu": one})
    assert has_room({}, {"cpu": two}, {"cpu": one})  # it says nothing of it
    assert not has_room({}, {}, {"vendor.example/gpu": one})
