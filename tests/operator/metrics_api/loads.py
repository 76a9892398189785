"""Pods' loads and tracks for these tests, in few words."""

from __future__ import annotations

from typing import Any

from tests.operator.test_pod_load import ANSWER

from octavo_operator.metrics_api.tracks import Track
from octavo_operator.pod_load import PodLoad, parse_load


def load(waiting: int = 0, running: int = 0, **others: Any) -> PodLoad:
    found = parse_load({**ANSWER, "waiting": waiting, "running": running, **others})
    assert found is not None
    return found


def track(*, ready_at: float | None = 0.0, heard_at: float | None = None, **figures: Any) -> Track:
    """Of a pod that was ready from then on, and answered once."""
    made = Track()
    if ready_at is not None:
        made.saw(ready=True, now=ready_at)
    if heard_at is not None:
        made.heard(load(**figures), heard_at)
    return made
