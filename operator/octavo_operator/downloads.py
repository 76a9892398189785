"""How far pods are with fetching the model, in one sentence. Pure.

Their first container tells (GET /progress); see octavo_server.fetch_command.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from octavo_operator import names
from octavo_server.memory_plan import readable_bytes

UNKNOWN = "a pod downloads the model"


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes; `rate` is bytes a second."""

    done: int
    total: int
    rate: int


def parse_progress(answer: Mapping[str, Any] | None) -> Progress | None:
    """None for an answer that is none of ours, or knows no total yet."""
    if answer is None:
        return None
    try:
        done, total = int(answer["done"]), int(answer["total"])
        rate = int(answer["bytes_per_second"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return Progress(done, total, rate) if 0 <= done <= total < 2**60 and total > 0 else None


def describe(found: Iterable[Progress | None]) -> str:
    """Of the pod that is furthest: the first to serve. "" if none says how far it is."""
    known = [each for each in found if each is not None]
    if not known:
        return ""
    most = max(known, key=lambda each: each.done / each.total)
    percent = 100 * most.done // most.total
    return (
        f"the model is downloaded: {percent}% of {readable_bytes(most.total)}, "
        f"{most.rate / 1e6:.0f} MB/s"
    )


def is_fetching(pod: Mapping[str, Any]) -> bool:
    """Whether that container of the pod runs now."""
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or ()
    return any(
        each.get("name") == names.FETCH_CONTAINER and "running" in (each.get("state") or {})
        for each in statuses
    )
