"""May this user read this metric? The API server is asked, and remembered for a short while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from octavo_operator.kube import Kube, KubeError, KubeUnreachable
from octavo_operator.metrics_api.documents import Refusal
from octavo_operator.metrics_api.front_proxy import User
from octavo_operator.metrics_api.questions import GROUP, Values

GRANTED_SECONDS = 60.0
"""How long somebody whose right was taken away may go on. An HPA asks every 15 s."""

REFUSED_SECONDS = 10.0
TIMEOUT_SECONDS = 5.0
MOST_REMEMBERED = 4096

Attributes = tuple[tuple[str, str], ...]

EVERYTHING: Attributes = (("verb", "get"), ("group", GROUP), ("resource", "*"))
"""Every metric of every namespace, which is what the HPA's controller may read: one question for
all of its HPAs."""

log = logging.getLogger(__name__)


def attributes_of(question: Values) -> Attributes:
    """As the API server itself reads such a path: the metric is a subresource."""
    return (
        ("verb", "get"),
        ("group", GROUP),
        ("version", question.version),
        ("namespace", question.namespace),
        ("resource", question.resource),
        ("subresource", question.metric),
        ("name", question.name),
    )


def review_of(user: User, attributes: Attributes) -> dict[str, Any]:
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "metadata": {},
        "spec": {
            "user": user.name,
            "uid": user.uid,
            "groups": list(user.groups),
            "extra": {key: list(values) for key, values in user.extra},
            "resourceAttributes": dict(attributes),
        },
    }


class Access:
    def __init__(self, kube: Kube, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube, self._clock = kube, clock
        self._known: OrderedDict[tuple[User, Attributes], tuple[bool, float]] = OrderedDict()
        self._asking: dict[tuple[User, Attributes], asyncio.Task[bool]] = {}

    async def check(self, user: User, question: Values) -> None:
        """Refusal 403 for a user without the right, 503 where that cannot be known."""
        if await self._may(user, EVERYTHING) or await self._may(user, attributes_of(question)):
            return
        what = f"{question.resource}/{question.metric}"
        raise Refusal(
            403,
            f'{what} is forbidden: User "{user.name}" cannot get resource "{what}" in API group '
            f'"{GROUP}" in the namespace "{question.namespace}"',
        )

    async def _may(self, user: User, attributes: Attributes) -> bool:
        key = (user, attributes)
        if (known := self._known.get(key)) is not None and self._clock() < known[1]:
            return known[0]
        # Many questions at once are one.
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.ensure_future(self._ask(user, attributes))
            task.add_done_callback(lambda done: self._answered(key, done))
        # One client that goes away must not end it for the others.
        may = await asyncio.shield(task)
        self._known[key] = may, self._clock() + (GRANTED_SECONDS if may else REFUSED_SECONDS)
        self._known.move_to_end(key)
        while len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)
        return may

    def _answered(self, key: tuple[User, Attributes], done: asyncio.Task[bool]) -> None:
        self._asking.pop(key, None)
        if not done.cancelled():
            done.exception()  # nobody may be left who waits for it

    async def _ask(self, user: User, attributes: Attributes) -> bool:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                answer = await self._kube.create(review_of(user, attributes))
        except (KubeError, KubeUnreachable, TimeoutError) as error:
            log.warning("cannot ask what %s may read: %s", user.name, error or "no answer in time")
            raise Refusal(503, f"cannot ask what user {user.name!r} may read: {error}") from None
        status = answer.get("status") or {}
        return bool(status.get("allowed")) and not status.get("denied")
