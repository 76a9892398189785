"""Who may read is asked for, and remembered for a short while."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo_operator.kube import KubeUnreachable
from octavo_operator.metrics_api.access import GRANTED_SECONDS, REFUSED_SECONDS, Access
from octavo_operator.metrics_api.documents import SERVICES, Refusal
from octavo_operator.metrics_api.front_proxy import User
from octavo_operator.metrics_api.questions import Values

JANE = User("jane", groups=("a",))
QUESTION = Values("v1beta2", "ns", SERVICES, "tiny", "octavo_running")


class Reviews:
    """An API server that lets these through: "*" for all metrics, or a namespace."""

    def __init__(self, *allowed: str) -> None:
        self.allowed = allowed
        self.asked: list[dict[str, Any]] = []
        self.now = 0.0
        self.down = False

    async def create(self, review: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        self.asked.append(review["spec"])
        if self.down:
            raise KubeUnreachable("the API server does not answer")
        attributes = review["spec"]["resourceAttributes"]
        wanted = "*" if attributes["resource"] == "*" else attributes["namespace"]
        return {"status": {"allowed": wanted in self.allowed}}

    def access(self) -> Access:
        either: Any = self
        return Access(either, lambda: self.now)


async def refusal(access: Access, user: User = JANE) -> Refusal | None:
    try:
        await access.check(user, QUESTION)
    except Refusal as error:
        return error
    return None


async def test_who_may_read_all_is_asked_about_once() -> None:
    reviews = Reviews("*")
    access = reviews.access()
    found = await asyncio.gather(*(refusal(access) for _ in range(50)))
    assert found == [None] * 50 and len(reviews.asked) == 1
    reviews.now = GRANTED_SECONDS - 1
    assert await refusal(access) is None and len(reviews.asked) == 1
    reviews.now = GRANTED_SECONDS
    reviews.allowed = ()
    told = await refusal(access)
    assert told is not None and told.code == 403


async def test_what_is_asked_is_what_the_api_server_would_ask() -> None:
    reviews = Reviews("ns")
    assert await refusal(reviews.access(), User("jane", "u", ("a",), (("k", ("v",)),))) is None
    asked = reviews.asked[-1]
    assert (asked["user"], asked["uid"], asked["groups"]) == ("jane", "u", ["a"])
    assert asked["extra"] == {"k": ["v"]}
    assert asked["resourceAttributes"] == {
        "verb": "get",
        "group": "custom.metrics.k8s.io",
        "version": "v1beta2",
        "namespace": "ns",
        "resource": "inferenceservices.octavo.dev",
        "subresource": "octavo_running",
        "name": "tiny",
    }


async def test_who_may_not_is_told_which_right_is_missing() -> None:
    reviews = Reviews()
    access = reviews.access()
    told = await refusal(access)
    assert told is not None and told.code == 403
    assert 'User "jane" cannot get resource "inferenceservices.octavo.dev/octavo_running"' in str(
        told
    )
    assert 'in the namespace "ns"' in str(told)
    reviews.allowed = ("ns",)
    assert await refusal(access) is not None
    reviews.now = REFUSED_SECONDS
    assert await refusal(access) is None


async def test_others_are_others() -> None:
    reviews = Reviews("*")
    access = reviews.access()
    assert await refusal(access) is None
    reviews.allowed = ()
    assert await refusal(access, User("jane", groups=("b",))) is not None


async def test_where_nobody_can_say_it_is_neither() -> None:
    reviews = Reviews("*")
    reviews.down = True
    access = reviews.access()
    told = await refusal(access)
    assert told is not None and told.code == 503
    reviews.down = False
    assert await refusal(access) is None


async def test_one_that_goes_away_ends_it_for_nobody() -> None:
    reviews = Reviews("*")
    access = reviews.access()
    first = asyncio.ensure_future(access.check(JANE, QUESTION))
    second = asyncio.ensure_future(access.check(JANE, QUESTION))
    await asyncio.sleep(0)
    first.cancel()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(reviews.asked) == 1
