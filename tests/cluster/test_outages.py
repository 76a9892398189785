"""The way to the API server breaks while pods are replaced: all of it ends, and nothing lies.

The operator reaches the API server through a proxy here, which cuts and hangs. `make soak` runs
it at full size.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest

from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.fleet import Fleet, gpus, slow
from tests.cluster.kube_api import ApiError, Client, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import NAMESPACE, SERVICE_ACCOUNT, Operator
from tests.cluster.tcp_proxy import TcpProxy
from tests.cluster.witness import Witness

SERVICES = int(os.environ.get("OCTAVO_OUTAGE_SERVICES", "4"))
ROUNDS = int(os.environ.get("OCTAVO_OUTAGE_ROUNDS", "1"))
SOAK = os.environ.get("OCTAVO_OUTAGE_SOAK") == "1"
HANG_SECONDS = 45.0 if SOAK else 4.0
"""45 is more than the operator waits for an answer."""
TIMEOUTS_SECONDS = 70.0 + 30.0
"""A watch that says nothing, then a request."""
SEED = int(os.environ.get("OCTAVO_FAULT_SEED", "0"))
REPLICAS = 2
AWAY_SECONDS = 1.0
WATCHES = 5
REQUESTS_OF_A_PASS = 10
SETTLE_SECONDS = 60 + 5 * SERVICES

MOST_REQUESTS = 150
"""Of a service in one rollout with its faults; about 40 without any."""

pytestmark = pytest.mark.timeout(180 + 30 * ROUNDS * SERVICES)


@pytest.fixture
def proxy(cluster: Cluster, namespace: str, operator: Operator) -> Iterator[TcpProxy]:
    """The operator's only way to the API server; it serves just this namespace."""
    with TcpProxy(int(cluster.plane.url.rpartition(":")[2])) as proxy:
        url = f"https://127.0.0.1:{proxy.port}"
        kubeconfig = cluster.service_account_kubeconfig(
            NAMESPACE, SERVICE_ACCOUNT, url=url, way="-proxied"
        )
        operator.restart(f"--namespace={namespace}", kubeconfig=kubeconfig)
        yield proxy
        operator.restart()


@pytest.fixture
def rollouts(
    cluster: Cluster,
    client: Client,
    namespace: str,
    nodes: Callable[..., Node],
    operator: Operator,
    proxy: TcpProxy,
) -> Iterator[Fleet]:
    """Services that are ready; whatever the test does to them meanwhile, all is well afterwards."""
    nodes(gpus=gpus(SERVICES, REPLICAS), script=slow)
    fleet = Fleet(client, namespace, SERVICES, REPLICAS)
    with Witness(cluster.kubeconfig, namespace) as witness:
        fleet.make(512)
        fleet.wait_until_settled(SETTLE_SECONDS)
        asked, before = operator.requests(), fleet.changes
        yield fleet
        fleet.wait_until_settled(SETTLE_SECONDS)
        operator.check()
        asked = operator.requests() - asked
        wait_for("rest", lambda: operator.requests_in(1.0) <= 1, 20)
    fleet.judge(witness.history)
    history, changes = witness.history, fleet.changes - before
    print(
        f"{SERVICES} services, {changes} rollouts, {asked:.0f} requests of the operator, "
        f"{proxy.connections} connections, {proxy.cuts} cut; {len(history.moments)} writes, "
        f"{history.claims()} claims, {len(history.gaps)} gaps"
    )
    assert changes > 0
    assert asked < MOST_REQUESTS * SERVICES * changes + REQUESTS_OF_A_PASS * fleet.disturbances


@pytest.mark.parametrize("by_crash", [True, False])
def test_the_api_server_restarts(
    cluster: Cluster, operator: Operator, proxy: TcpProxy, rollouts: Fleet, by_crash: bool
) -> None:
    for _ in range(ROUNDS):
        rollouts.change()
        rollouts.wait_for(1)
        cluster.plane.stop_api_server(by_crash=by_crash)
        try:
            asked, connections = operator.requests(), proxy.connections
            time.sleep(AWAY_SECONDS)
            asked, connections = operator.requests() - asked, proxy.connections - connections
        finally:
            cluster.plane.start_api_server()
        # Each service and each watch asks again a little later each time.
        assert asked <= 3 * SERVICES
        assert connections <= 3 * SERVICES + 4 * WATCHES
        rollouts.wait_until_settled(SETTLE_SECONDS)


def test_watches_are_cut_mid_stream(proxy: TcpProxy, rollouts: Fleet) -> None:
    chance = random.Random(SEED)
    for _ in range(ROUNDS):
        proxy.cut_after(lambda: chance.randrange(20_000, 80_000 * SERVICES))
        before = proxy.cuts
        for _ in range(2):
            rollouts.change()
            rollouts.wait_for(1)
            assert proxy.cut() > 0
            time.sleep(1)
        proxy.cut_after(None)
        assert proxy.cuts - before > 10


def test_connections_hang(proxy: TcpProxy, rollouts: Fleet) -> None:
    for _ in range(ROUNDS):
        rollouts.change()
        rollouts.wait_for(1)
        proxy.hang()
        rollouts.change()  # nobody tells the operator
        time.sleep(HANG_SECONDS)
        assert rollouts.serving() == 0
        proxy.cut()
        proxy.flow()
        rollouts.wait_for(1)


@contextmanager
def storm(client: Client, namespace: str, fleet: Fleet) -> Iterator[list[int]]:
    """Somebody writes to each service and each Deployment all the time; the list has how often, and
    how often another was quicker.
    """
    over, counts = threading.Event(), [0, 0]

    def write(path: str) -> None:
        while not over.is_set():
            metadata = client.get(path)["metadata"]
            notes = {"example.com/count": str(counts[0])}
            known = {"annotations": notes, "resourceVersion": metadata["resourceVersion"]}
            try:
                client.patch(path, {"metadata": known})
                counts[0] += 1
            except ApiError as error:
                if error.code != 409:
                    raise
                counts[1] += 1

    deployments = path_of("apps/v1", "Deployment", namespace)
    paths = [f"{where}/{name}" for where in (fleet.where, deployments) for name in fleet.names]
    with ThreadPoolExecutor(len(paths)) as pool:
        writers = [pool.submit(write, path) for path in paths]
        try:
            yield counts
        finally:
            over.set()
    for writer in writers:
        writer.result()


def test_a_storm_of_conflicts(
    client: Client, namespace: str, operator: Operator, rollouts: Fleet
) -> None:
    def meets_one(before: float) -> bool:
        """The number of replicas is written only where nobody wrote since it was read."""
        for name in rollouts.names:
            client.patch(f"{rollouts.where}/{name}", {"spec": {"replicas": None}})
        return operator.requests("409") > before

    with storm(client, namespace, rollouts) as counts:
        for _ in range(ROUNDS):
            rollouts.change()
            rollouts.wait_for(1)
            met = partial(meets_one, operator.requests("409"))
            wait_for("a conflict of the operator's own", met)
            rollouts.wait_until_settled(SETTLE_SECONDS)  # in spite of it
    written, slower = counts
    print(f"{written} writes of somebody else, {slower} of them too late")
    assert written > 20 * SERVICES * ROUNDS
    rollouts.disturbances += written


@pytest.mark.skipif(not SOAK, reason="waits for the longest timeouts: make soak")
def test_connections_hang_for_ever(proxy: TcpProxy, rollouts: Fleet) -> None:
    """As behind a firewall that forgets them: only the operator's own timeouts help."""
    proxy.hang(new_ones=False)
    rollouts.change()
    rollouts.wait_until_settled(SETTLE_SECONDS + TIMEOUTS_SECONDS)
