"""What GET /load tells: how busy a server is, and what it is, for an operator or a balancer.

Cheaper to ask and to read than /metrics, and without a key as that is: no request can be told from
it.
"""

from __future__ import annotations

from typing import Any

from octavo_server.api.service import Service
from octavo_server.cli import version


def describe_load(service: Service) -> dict[str, Any]:
    """`server_load` is vLLM's word for the requests that are not fully answered; `running` and
    `waiting` are the engine's, `kv_cache_usage` a fraction; `admitted` counts the requests that
    ever got their first token: how fast those that wait are taken up. The tokens that the cache
    holds and the seconds that the start took are 0 before the model is loaded.
    """
    stats, ready = service.metrics.stats, service.ready
    return {
        "server_load": service.lifecycle.active,
        "state": service.lifecycle.state,
        "running": stats.running,
        "waiting": stats.waiting,
        "admitted": sum(service.metrics.time_to_first_token.counts),
        "kv_cache_usage": stats.kv_cache_usage,
        "kv_cache_tokens": 0 if ready is None else ready.num_blocks * ready.block_size,
        "startup_seconds": round(service.startup_seconds, 1),
        "version": version(),
    }
