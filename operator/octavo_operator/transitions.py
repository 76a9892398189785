"""Which events a change of status is worth. Pure: two statuses in, events out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from octavo_operator import conditions
from octavo_operator.conditions import ROLLING_OUT


@dataclass(frozen=True, slots=True)
class Event:
    """What `kubectl describe` shows below an InferenceService."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def decide_events(previous: Mapping[str, Any], status: Mapping[str, Any]) -> list[Event]:
    """A rollout first, then what newly fails, then a change of Ready, which sums up the others."""
    events = list(_rollout_event(previous, status))
    before = {each["type"]: each for each in previous.get("conditions") or []}
    for each in reversed(status.get("conditions") or []):  # Ready is the first there
        old = before.get(each["type"], {})
        if (old.get("status"), old.get("reason")) == (each["status"], each["reason"]):
            continue
        failing = each["status"] == "False" and each["reason"] not in conditions.PASSING
        if not failing and (each["type"] != conditions.READY or each["reason"] == ROLLING_OUT):
            continue  # the rollout has an event of its own, with the reason
        if any(event.reason == each["reason"] for event in events):
            continue  # said by the condition that it comes from
        events.append(Event("Warning" if failing else "Normal", each["reason"], each["message"]))
    return events


def _rollout_event(previous: Mapping[str, Any], status: Mapping[str, Any]) -> Iterator[Event]:
    old = (previous.get("rollout") or {}).get("revision")
    new = status.get("rollout") or {}
    if old and new.get("revision") and old != new["revision"]:
        yield Event("Normal", ROLLING_OUT, f"pods are replaced: {new['reason']}")
