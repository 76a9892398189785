"""How a pod ends without cutting a stream; the three times add up.

kubelet counts the grace period from the moment the pod is deleted, so it covers, one after another:
the preStop sleep, the drain that SIGTERM starts, and the engine process's own end.
"""

from __future__ import annotations

PRE_STOP_SECONDS = 5
"""A deleted pod leaves the EndpointSlices at once, but proxies hear of it up
to seconds later; until then requests still arrive, and the server still takes them."""

STOP_SECONDS = 15
"""The API process gives the engine 5 s to end, then kills it; the rest is slack."""


def grace_seconds(drain_seconds: int) -> int:
    """The pod's grace period; SIGTERM begins `drain_seconds` (spec.drain) in which there is no new
    work and running streams go on. An idle server leaves at once.
    """
    return PRE_STOP_SECONDS + drain_seconds + STOP_SECONDS
