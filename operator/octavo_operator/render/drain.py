"""How a pod ends without cutting a stream; the three times add up.

kubelet counts the grace period from the moment the pod is deleted, so it covers, one after another:
the preStop sleep, the drain that SIGTERM starts, and the engine process's own end.
"""

from __future__ import annotations

PRE_STOP_SECONDS = 5
"""A deleted pod leaves the EndpointSlices at once, but proxies hear of it up
to seconds later; until then requests still arrive, and the server still takes them."""

DRAIN_SECONDS = 300
"""SIGTERM: no new work, running streams go on. 300 s is an answer of 9,000
tokens at 30 tokens/s; an idle server leaves at once."""

STOP_SECONDS = 15
"""The API process gives the engine 5 s to end, then kills it; the rest is slack."""

GRACE_SECONDS = PRE_STOP_SECONDS + DRAIN_SECONDS + STOP_SECONDS
