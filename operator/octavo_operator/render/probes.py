"""The three probes of a server's container, and why each has its numbers."""

from __future__ import annotations

from typing import Any

from octavo_operator import names

STARTUP_PERIOD_SECONDS = 2
STARTUP_SECONDS_PER_GPU = 1800
STARTUP_SECONDS_MOST = 3 * 3600


def startup_seconds(tensor_parallel_size: int) -> int:
    """How long a model may take to download and load.

    A model is about as large as the GPUs it needs: 80 GB at 50 MB/s are 27 minutes, hence half an
    hour for each GPU, 3 hours at most. A load that fails ends the process and is seen at once: this
    bound is only for one that hangs.
    """
    return min(STARTUP_SECONDS_PER_GPU * tensor_parallel_size, STARTUP_SECONDS_MOST)


def render_probes(tensor_parallel_size: int) -> dict[str, Any]:
    return {
        # Until it succeeds once, the other two do not run: liveness never acts during a load. Asked
        # every 2 s, so that a small model takes traffic soon after it is loaded.
        "startupProbe": {
            **_get("/ready"),
            "periodSeconds": STARTUP_PERIOD_SECONDS,
            "timeoutSeconds": 2,
            "failureThreshold": startup_seconds(tensor_parallel_size) // STARTUP_PERIOD_SECONDS,
        },
        # A draining or broken server leaves the Service within 2 s; one late answer does not do it.
        "readinessProbe": {
            **_get("/ready"),
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": 2,
        },
        # /health is 503 when the engine died or stands still. A restart costs minutes of loading
        # and every stream, so it takes half a minute of such answers.
        "livenessProbe": {
            **_get("/health"),
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
    }


def _get(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": names.PORT_NAME}}
