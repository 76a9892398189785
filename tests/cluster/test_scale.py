"""Many services: how long until all serve, and what the operator takes for it, and at rest.

`make soak` runs it with 1,000.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil
import pytest

from tests.cluster.cluster import wait_for
from tests.cluster.hollow import steady
from tests.cluster.kube_api import Client, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import Operator
from tests.cluster.test_e2e import API, condition, make, manifest

SERVICES = int(os.environ.get("OCTAVO_SCALE_SERVICES", "100"))
IDLE_SECONDS = 6.0 if SERVICES <= 100 else 60.0
LIMIT_BYTES = 512 << 20
"""What the chart gives the operator."""

pytestmark = pytest.mark.timeout(300 + 3 * SERVICES)


def test_many_services_converge_and_then_nothing_is_asked(
    client: Client, namespace: str, nodes: Callable[..., Node], operator: Operator
) -> None:
    nodes(gpus=SERVICES, pods=SERVICES + 10, script=steady)
    operator.restart()  # its CPU seconds and memory begin here
    process = psutil.Process(operator.pid)
    began, asked = time.monotonic(), requests_or_none(operator)
    for index in range(SERVICES):
        make(client, namespace, manifest(f"s{index}", {}))
    created = time.monotonic() - began
    where = path_of(API, "InferenceService", namespace)

    def all_ready() -> bool:
        found = client.list(where)
        return all(condition(each, "Ready").get("status") == "True" for each in found)

    wait_for("all to be ready", all_ready, 60 + SERVICES)
    seconds = time.monotonic() - began
    cpu = sum(process.cpu_times()[:2])
    busy = operator.requests() - asked
    # The last status writes are events, too; on a busy machine they take a while.
    wait_for("rest", lambda: operator.requests_in(2.0) <= SERVICES / 10, 60 + SERVICES / 10)
    before, cpu_before = operator.requests(), sum(process.cpu_times()[:2])
    time.sleep(IDLE_SECONDS)
    idle = (operator.requests() - before) * 60 / IDLE_SECONDS
    idle_cpu = (sum(process.cpu_times()[:2]) - cpu_before) / IDLE_SECONDS
    memory = process.memory_info().rss
    print(
        f"{SERVICES} services: created in {created:.1f} s, all ready after {seconds:.1f} s; "
        f"operator: {cpu:.1f} s of CPU, {busy / SERVICES:.1f} requests a service, "
        f"{memory >> 20} MiB; idle: {idle:.0f} requests a minute, {idle_cpu:.1%} of a core"
    )
    assert memory < LIMIT_BYTES
    # Measured: 27 requests and 0.06 s a service.
    assert busy < 40 * SERVICES
    assert cpu < 0.25 * SERVICES
    # At rest each is looked at once in 300 s, with seven requests: 1.5 a minute. One request a
    # minute more for each, as of something that asks without need, is too much.
    assert idle < 2.5 * SERVICES
    assert idle_cpu < 0.25


def requests_or_none(operator: Operator) -> float:
    """0 until its port answers."""
    try:
        return operator.requests()
    except OSError:
        return 0.0
