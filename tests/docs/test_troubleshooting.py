"""docs/troubleshooting.md has every reason, under the condition that it is one of."""

from __future__ import annotations

import re

import pytest
from tests.docs.blocks import ROOT
from tests.docs.test_words import rows, section
from tests.operator.services import facts, service

from octavo_operator import conditions
from octavo_operator.status import decide_conditions
from octavo_server import errors

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
NODES = {"UnexpectedAdmissionError"}
"""A kubelet's own reason, as an example of them."""

CONSTANTS = {
    value for name, value in vars(conditions).items() if name.isupper() and isinstance(value, str)
}
TYPES = {conditions.FITS_ACCELERATOR} | {
    each for each in CONSTANTS if each.endswith("Ready") and not each.endswith("ReplicasReady")
}
OPERATORS = CONSTANTS - TYPES
SERVERS = {
    each.reason
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, errors.StartupError)
} | {"EngineFailed"}  # fmt: skip


def reasons(heading: str) -> set[str]:
    found = set()
    for first, *_ in rows(section(PAGE, heading)):
        found |= set(re.findall(r"`([A-Z]\w+)`", first))
    return found


def test_every_condition_has_a_section() -> None:
    assert set(re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)) >= TYPES
    assert len(TYPES) == 6


@pytest.mark.parametrize("heading", [*sorted(TYPES), "Events"])
def test_every_reason_there_exists(heading: str) -> None:
    assert reasons(heading) and reasons(heading) <= OPERATORS | SERVERS | NODES


def test_every_reason_has_a_row() -> None:
    everywhere = set().union(*(reasons(each) for each in [*TYPES, "Events"]))
    assert everywhere >= OPERATORS | SERVERS
    assert reasons("ModelReady") >= SERVERS


def test_rows_say_what_to_do() -> None:
    """A reason of False or Unknown has a third cell, unless nothing is wrong."""
    fine = conditions.PASSING | {"Serving", "Loaded", "AllReplicasReady", "SomeReplicasReady"}
    fine |= {conditions.FITS, conditions.NO_ACCELERATOR, conditions.ROUTED, conditions.SCALING}
    for heading in TYPES:
        for first, meaning, what in rows(section(PAGE, heading)):
            told = set(re.findall(r"`([A-Z]\w+)`", first))
            assert meaning and (what or told <= fine), first


def test_what_the_status_says_is_in_its_section() -> None:
    """The conditions of a few services: each reason stands under its type."""
    for one, seen in (
        (service(), facts()),
        (service(suspend=True), facts(wanted=0)),
        (service(), facts(problem=conditions.Problem("WorkloadReady", "Stalled", "x"))),
    ):
        ready, *others = decide_conditions(one, seen)
        for each in others:
            asleep = each.reason in (conditions.SCALED_TO_ZERO, conditions.SUSPENDED)
            where = "Ready" if asleep else each.type
            assert each.reason in reasons(where), each
        assert ready.reason in set().union(*map(reasons, TYPES))
