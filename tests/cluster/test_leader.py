"""Two operators: one leads, the other does nothing until it must."""

from __future__ import annotations

import os
import re
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.fleet import Fleet, gpus, slow
from tests.cluster.kube_api import Client, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import NAMESPACE, Operator, environment
from tests.cluster.processes import Daemon, free_ports
from tests.cluster.test_e2e import make, manifest, wait_for_condition
from tests.cluster.witness import Witness

LEASE = path_of("coordination.k8s.io/v1", "Lease", NAMESPACE, "octavo-operator")


class Candidate:
    def __init__(self, cluster: Cluster, operator: Operator, name: str, serves: str) -> None:
        self._probes, self._metrics = free_ports(2)
        variables = {**environment(operator.kubeconfig), "POD_NAME": name}
        command = [
            sys.executable, "-m", "octavo_server.cli", "operator", f"--namespace={serves}",
            f"--liveness-port={self._probes}", f"--metrics-port={self._metrics}",
            f"--lease-namespace={NAMESPACE}", "--log-format=json",
        ]  # fmt: skip
        self.daemon = Daemon(f"candidate-{name}", command, cluster.folder, variables)

    def says(self) -> str:
        """What `/readyz` says; "" unless it is ready."""
        try:
            url = f"http://127.0.0.1:{self._probes}/readyz"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode().strip())
        except (urllib.error.URLError, OSError):
            return ""

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/metrics") as answer:
            text = answer.read().decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
        assert found is not None, text
        return float(found[1])

    def leads(self) -> bool:
        return self.says() == "leading"


LEASE_SECONDS = 15.0


def test_one_leads_and_hands_over(
    cluster: Cluster, operator: Operator, client: Client, namespace: str
) -> None:
    passes = 'octavo_operator_passes_total{result="done"}'
    first = Candidate(cluster, operator, "first", namespace)
    second = None
    try:
        wait_for("the first leads", lambda: first.says() == "leading")
        second = Candidate(cluster, operator, "second", namespace)
        wait_for("the second stands by", lambda: second.says() == "standing by")
        make(client, namespace, manifest("a", {"device": "cpu"}))
        wait_for_condition(client, namespace, "a", bool)
        wait_for("a pass of the first", lambda: first.metric(passes) > 0)
        leads = [each.metric("octavo_operator_leader") for each in (first, second)]
        assert leads == [1, 0]
        assert second.metric(passes) == 0

        os.kill(first.daemon.pid, signal.SIGTERM)
        wait_for("the second leads", lambda: second.says() == "leading")
        wait_for("the first's end", lambda: first.daemon.exit_code is not None)
        assert first.daemon.exit_code == 0, first.daemon.log_tail()
        wait_for("a pass of the second", lambda: second.metric(passes) > 0)

        # Somebody takes it away, as another would after 15 silent seconds.
        client.patch(LEASE, {"spec": {"holderIdentity": "third"}})
        wait_for("the second's end", lambda: second.daemon.exit_code is not None)
        assert second.daemon.exit_code == 1
        assert "stopped: third leads now" in second.daemon.log_tail()
    finally:
        for each in (first, second):
            if each is not None:
                each.daemon.stop()
        if client.find(LEASE) is not None:
            client.delete(LEASE)


@pytest.mark.parametrize("how", ["taken", "frozen"])
def test_the_leader_is_lost_in_the_middle_of_rollouts(
    cluster: Cluster,
    operator: Operator,
    client: Client,
    namespace: str,
    nodes: Callable[..., Node],
    how: str,
) -> None:
    """Another has the lease, or the leader's machine stands still for longer than that lasts."""
    nodes(gpus=gpus(3, 2), script=slow)
    fleet = Fleet(client, namespace, services=3, replicas=2)
    operator.stop()  # it would do the work of those that may not
    first = Candidate(cluster, operator, f"{how}-first", namespace)
    second = None
    try:
        wait_for("the first leads", first.leads)
        second = Candidate(cluster, operator, f"{how}-second", namespace)
        with Witness(cluster.kubeconfig, namespace) as witness:
            fleet.make(512)
            fleet.wait_until_settled(60)
            wait_for("the second stands by", lambda: second.says() == "standing by")
            fleet.change()
            fleet.wait_for(1)
            if how == "taken":
                client.patch(LEASE, {"spec": {"holderIdentity": "third"}})
                wait_for("the first's end", lambda: first.daemon.exit_code == 1, 5)
            else:
                os.kill(first.daemon.pid, signal.SIGSTOP)
            fleet.change()
            assert not second.leads()
            wait_for("the second leads", second.leads, LEASE_SECONDS + 10)
            fleet.wait_for(1)
            if how == "frozen":
                os.kill(first.daemon.pid, signal.SIGCONT)
                wait_for("the first's end", lambda: first.daemon.exit_code == 1, 5)
            fleet.wait_until_settled(60)
        assert second.leads()
        fleet.judge(witness.history)
        passes = second.metric('octavo_operator_passes_total{result="done"}')
        assert passes < 200, passes
    finally:
        for each in (first, second):
            if each is not None:
                each.daemon.kill()
        client.delete(LEASE)
        operator.restart()
