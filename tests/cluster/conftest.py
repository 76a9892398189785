"""Fixtures of the cluster tests: one cluster a session, a fresh namespace a test.

Under pytest-xdist all of them go to one worker (group "cluster"), so one control plane serves all.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.charts.fetch_helm import helm_program
from tests.cluster.cluster import Cluster, what_is_missing
from tests.cluster.kube_api import Client, path_of
from tests.cluster.metrics_api_process import MetricsApi
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import Operator
from tests.cluster.route_apis import RouteApis

HERE = Path(__file__).parent
_numbers = itertools.count(1)
Helm = Callable[..., str]


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.xdist_group("cluster"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remembers a failure, so that the cluster keeps its logs."""
    outcome: Any = yield
    if outcome.get_result().failed and "cluster" in getattr(item, "funcargs", {}):
        item.funcargs["cluster"].failed = True  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    missing = what_is_missing()
    if missing:
        text = f"the cluster tests cannot run: {missing}"
        if os.environ.get("OCTAVO_REQUIRE_CLUSTER") == "1":
            pytest.fail(text)
        pytest.skip(text)
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", file=sys.stderr, flush=True)

    running = Cluster(say)
    yield running
    if running.failed:
        say(f"logs kept in {running.folder}")
    running.stop()


@pytest.fixture
def client(cluster: Cluster) -> Client:
    """The API as cluster-admin, in plain dicts."""
    return cluster.client


@pytest.fixture
def kubectl(cluster: Cluster) -> Callable[..., Any]:
    """`kubectl("get", "pods", stdin=None, check=True)` gives the completed process."""
    return cluster.kubectl


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace with its default ServiceAccount; its deletion is not waited for."""
    name = f"test-{next(_numbers)}"
    cluster.client.create(path_of("v1", "Namespace"), {"metadata": {"name": name}})
    yield name
    # Workloads first, so that no pod is replaced; then the pods at once, whatever their grace.
    for version, kind in (("apps/v1", "Deployment"), ("apps/v1", "ReplicaSet"), ("v1", "Pod")):
        cluster.client.delete(path_of(version, kind, name), gracePeriodSeconds=0)
    cluster.client.delete(path_of("v1", "Namespace", name=name))


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[Callable[..., Node]]:
    """`nodes(gpus=2, script=None, ...)` registers a Node (settings as in Node) for this test."""
    made: list[Node] = []

    def make(name: str = "", **settings: Any) -> Node:
        node = cluster.add_node(name or f"node-{next(_numbers)}", **settings)
        made.append(node)
        return node

    yield make
    for node in made:
        cluster.remove_node(node.name)


@pytest.fixture
def route_apis(cluster: Cluster) -> Iterator[RouteApis]:
    """Not there until `install()`; gone after the test, and the operator's rights with them."""
    apis = RouteApis(cluster)
    yield apis
    apis.remove()
    apis.forbid()


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> Iterator[Operator]:
    """The CRDs, and the operator with its ServiceAccount and exactly the chart's rights."""
    running = Operator(cluster)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def metrics_api(cluster: Cluster, operator: Operator) -> Iterator[MetricsApi]:
    """`octavo metrics-api`, behind the API server."""
    running = MetricsApi(cluster)
    try:
        running.wait_until_available()
        yield running
    finally:
        running.stop()


@pytest.fixture
def helm(cluster: Cluster, namespace: str) -> Helm:
    """`helm("upgrade", "own", ..., fails=False)` in the test's namespace: what it printed, with
    `fails` to stderr.
    """
    program = helm_program()
    if program is None:
        pytest.skip("no helm (`make helm`)")

    def run(verb: str, *arguments: str, fails: bool = False) -> str:
        done = subprocess.run(
            [program, verb, *arguments, "--namespace", namespace],
            env={"KUBECONFIG": str(cluster.kubeconfig), "PATH": "/usr/bin:/bin", "HOME": "/tmp"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert bool(done.returncode) is fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout

    return run
