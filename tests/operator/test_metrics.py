"""What the operator says of itself."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest

from octavo_operator.listening import listening
from octavo_operator.metrics import Metrics
from octavo_operator.queue import Queue


async def read(port: int) -> dict[str, float]:
    url = f"http://127.0.0.1:{port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200
        lines = (await response.text()).splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_all_of_it() -> None:
    async def scenario() -> dict[str, float]:
        queue = Queue()
        metrics = Metrics(queue)
        queue.add(("ns", "a"))
        with metrics.passing():
            pass
        with pytest.raises(ValueError, match="x"), metrics.passing():
            raise ValueError("x")
        metrics.saw_request("GET", 200)
        metrics.saw_request("GET", 0)
        metrics.saw_service(("ns", "a"), {"conditions": [{"type": "Ready", "status": "True"}]})
        metrics.saw_service(("ns", "b"), {})
        metrics.saw_service(("ns", "c"), {"conditions": [{"type": "Ready", "status": "False"}]})
        metrics.forgot_service(("ns", "c"))
        asleep = {"type": "Ready", "status": "False", "reason": "Suspended"}
        metrics.saw_service(("ns", "d"), {"conditions": [asleep]})
        port = free_port()
        async with listening(port, {"/metrics": metrics.answer}):
            return await read(port)

    found = asyncio.run(scenario())
    assert found['octavo_operator_passes_total{result="done"}'] == 1
    assert found['octavo_operator_passes_total{result="failed"}'] == 1
    assert found["octavo_operator_pass_seconds_count"] == 2
    assert found["octavo_operator_queue_depth"] == 1
    assert found["octavo_operator_queue_overdue_seconds"] >= 0
    assert found['octavo_operator_api_requests_total{code="200",method="GET"}'] == 1
    assert found['octavo_operator_api_requests_total{code="0",method="GET"}'] == 1
    services = {name: value for name, value in found.items() if "_services{" in name}
    assert services == {
        'octavo_operator_services{ready="True"}': 1,
        'octavo_operator_services{ready="False"}': 0,
        'octavo_operator_services{ready="Unknown"}': 1,
        'octavo_operator_services{ready="Suspended"}': 1,
    }


def test_none_without_a_port() -> None:
    async def scenario() -> None:
        async with listening(0, {"/metrics": Metrics(Queue()).answer}):
            pass

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("namespace", "left"), [(None, {("a", "x")}), ("b", {("a", "x"), ("a", "y")})]
)
def test_what_a_list_does_not_have_is_forgotten(
    namespace: str | None, left: set[tuple[str, str]]
) -> None:
    metrics = Metrics(Queue())
    for key in (("a", "x"), ("a", "y"), ("b", "x")):
        metrics.saw_service(key, {})
    listed = [("a", "x")] if namespace is None else []
    metrics.listed_services(namespace, listed)
    (family,) = (
        each for each in metrics.registry.collect() if each.name == "octavo_operator_services"
    )
    assert sum(each.value for each in family.samples) == len(left)
