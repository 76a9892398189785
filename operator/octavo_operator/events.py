"""Events on an InferenceService. A lost one is only logged: status has the same words."""

from __future__ import annotations

import logging
import uuid
from typing import Any

from octavo_operator import names
from octavo_operator.kube import Kube, KubeError, KubeUnreachable
from octavo_operator.transitions import Event

_LONGEST_MESSAGE = 1024
"""The API server's own bound."""

COMPONENT = "octavo-operator"

log = logging.getLogger(__name__)


async def post_event(kube: Kube, regarding: dict[str, Any], event: Event, now: str) -> None:
    """`regarding` is the live InferenceService, `now` RFC 3339 in UTC."""
    metadata = regarding["metadata"]
    message = event.message
    if len(message) > _LONGEST_MESSAGE:
        message = message[: _LONGEST_MESSAGE - 3] + "..."
    try:
        await kube.create(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {
                    "name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}",
                    "namespace": metadata["namespace"],
                },
                "involvedObject": {
                    "apiVersion": names.API_VERSION,
                    "kind": names.KIND,
                    "name": metadata["name"],
                    "namespace": metadata["namespace"],
                    "uid": metadata["uid"],
                },
                "type": event.type,
                "reason": event.reason,
                "message": message,
                "source": {"component": COMPONENT},
                "reportingComponent": COMPONENT,
                "reportingInstance": "",
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
            }
        )
    except (KubeError, KubeUnreachable) as error:
        log.warning("%s/%s: event lost: %s", metadata["namespace"], metadata["name"], error)
