"""What a server says of itself (GET /load): how busy it is, and what it is. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

_LONGEST_VERSION = 64


@dataclass(frozen=True, slots=True)
class PodLoad:
    """Of one pod. `in_flight` are the requests that are not fully answered, `kv_cache_usage` is a
    fraction. `admitted` counts those that were ever taken up; None: its server does not tell.
    """

    in_flight: int
    running: int
    waiting: int
    kv_cache_usage: float
    kv_cache_tokens: int
    startup_seconds: int
    version: str
    admitted: int | None = None


def parse_load(answer: Mapping[str, Any] | None) -> PodLoad | None:
    """None for an answer that is not a server's of ours: the image may be anybody's."""
    if answer is None:
        return None
    try:
        return PodLoad(
            in_flight=_count(answer["server_load"]),
            running=_count(answer["running"]),
            waiting=_count(answer["waiting"]),
            kv_cache_usage=min(1.0, max(0.0, float(answer["kv_cache_usage"]))),
            kv_cache_tokens=_count(answer["kv_cache_tokens"]),
            startup_seconds=_count(answer["startup_seconds"]),
            version=str(answer["version"])[:_LONGEST_VERSION],
            admitted=None if answer.get("admitted") is None else _count(answer["admitted"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def report(loads: Collection[PodLoad]) -> dict[str, Any] | None:
    """The status' `reported`: sums over the pods, rounded so that it is written seldom; None if no
    pod says anything. What differs from pod to pod is told of the one with the smallest cache.
    """
    if not loads:
        return None
    least = min(loads, key=lambda each: (each.kv_cache_tokens, each.version))
    usage = sum(each.kv_cache_usage for each in loads) / len(loads)
    return {
        "version": least.version,
        "kvCacheTokens": least.kv_cache_tokens,
        "startupSeconds": max(each.startup_seconds for each in loads),
        "running": _rounded(sum(each.running for each in loads)),
        "waiting": _rounded(sum(each.waiting for each in loads)),
        "kvCachePercent": round(usage * 20) * 5,
    }


def _count(value: Any) -> int:
    return min(2**53, max(0, int(value)))


def _rounded(count: int) -> int:
    """Exact to 10, two digits to 1,000, one beyond."""
    if count <= 10:
        return count
    return int(float(f"{count:.{2 if count < 1000 else 1}g}"))
