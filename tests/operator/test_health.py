"""What the operator's probes are told, over HTTP."""

from __future__ import annotations

import asyncio

import aiohttp
from tests.operator.test_metrics import free_port

from octavo_operator.health import STALLED_SECONDS, Health
from octavo_operator.listening import listening
from octavo_operator.queue import Queue


async def codes(health: Health) -> tuple[int, int]:
    port = free_port()
    found = []
    probes = {"/healthz": health.alive, "/readyz": health.ready}
    async with listening(port, probes), aiohttp.ClientSession() as session:
        for path in probes:
            async with session.get(f"http://127.0.0.1:{port}{path}") as response:
                found.append(response.status)
    return found[0], found[1]


def test_ready_once_it_knows_what_it_does() -> None:
    async def scenario() -> None:
        health = Health(Queue())
        assert await codes(health) == (200, 503)
        health.doing = "standing by"
        assert await codes(health) == (200, 200)

    asyncio.run(scenario())


def test_not_alive_where_due_passes_do_not_begin() -> None:
    async def scenario() -> None:
        now = 0.0
        queue = Queue(lambda: now)
        health = Health(queue)
        queue.add(("ns", "later"), 10 * STALLED_SECONDS)
        queue.add(("ns", "due"))
        now = STALLED_SECONDS - 1
        assert (await codes(health))[0] == 200
        now = STALLED_SECONDS + 1
        assert (await codes(health))[0] == 503
        assert queue.pop() == ("ns", "due")
        assert (await codes(health))[0] == 200

    asyncio.run(scenario())


def test_alive_while_slow_passes_end() -> None:
    async def scenario() -> None:
        now = 0.0
        queue = Queue(lambda: now)
        health = Health(queue)
        for name in "abc":
            queue.add(("ns", name))
        now = STALLED_SECONDS - 1
        key = queue.pop()
        assert key is not None
        queue.done(key)
        now = STALLED_SECONDS + 1
        assert (await codes(health))[0] == 200
        now = 2 * STALLED_SECONDS
        assert (await codes(health))[0] == 503

    asyncio.run(scenario())
