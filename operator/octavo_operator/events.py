"""Events on an InferenceService. A lost one is only logged: status has the same words."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

from octavo_operator import names
from octavo_operator.kube import Kube, KubeError, KubeUnreachable
from octavo_operator.transitions import Event

_LONGEST_MESSAGE = 1024
"""The API server's own bound."""

COMPONENT = "octavo-operator"

AGAIN_SECONDS = 600.0
"""The same words about the same object are said once in so long: of somebody who keeps changing
what we set back."""

RETURN_SECONDS = 60.0
"""Once in so long where others came between: a condition that comes back is news, one that comes
and goes all the time is not."""

_MOST = 10_000

log = logging.getLogger(__name__)

_said: dict[tuple[str, str, str], float] = {}
_latest: dict[str, tuple[str, str, str]] = {}


async def post_event(kube: Kube, regarding: dict[str, Any], event: Event, now: str) -> None:
    """`regarding` is the live InferenceService, `now` RFC 3339 in UTC."""
    metadata = regarding["metadata"]
    message = event.message
    if len(message) > _LONGEST_MESSAGE:
        message = message[: _LONGEST_MESSAGE - 3] + "..."
    if not _is_new((metadata["uid"], event.reason, message)):
        return
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


def _is_new(words: tuple[str, str, str], clock: Callable[[], float] = time.monotonic) -> bool:
    """Whether they are worth saying now: then they were said."""
    now, uid = clock(), words[0]
    patience = AGAIN_SECONDS if _latest.get(uid) == words else RETURN_SECONDS
    if (said := _said.pop(words, None)) is not None and now < said + patience:
        _said[words] = said
        return False
    _make_room(_said)
    _make_room(_latest)
    _said[words] = now
    _latest[uid] = words
    return True


def _make_room(kept: dict[Any, Any]) -> None:
    """The oldest goes where there are too many."""
    while len(kept) >= _MOST:
        kept.pop(next(iter(kept)))
