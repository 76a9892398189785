"""What pods say of their load: in the status, and in which pod goes first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from octavo_operator import names
from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.hollow import Behaviour
from tests.cluster.kube_api import Client, Object, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import Operator
from tests.cluster.test_e2e import API, make, manifest, pods_of, wait_for_condition
from tests.operator.test_pod_load import ANSWER

LOADS = {"127.7.7.1": 9, "127.7.7.2": 0, "127.7.7.3": 5}


class Load(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        load = LOADS[self.server.server_address[0]]  # type: ignore[index]
        found = {**ANSWER, "server_load": load, "running": load, "waiting": 40}
        body = json.dumps(found).encode()
        self.send_response(200 if self.path == "/load" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def servers() -> Iterator[None]:
    made = [ThreadingHTTPServer((address, names.PORT), Load) for address in LOADS]
    for each in made:
        Thread(target=each.serve_forever, daemon=True).start()
    yield
    for each in made:
        each.shutdown()
        each.server_close()


@pytest.mark.usefixtures("servers")
def test_the_status_has_it_and_the_idlest_pod_goes(
    cluster: Cluster,
    client: Client,
    namespace: str,
    nodes: Callable[..., Node],
    operator: Operator,
) -> None:
    free = list(LOADS)
    given: dict[str, str] = {}

    def script(pod: Object) -> Behaviour:
        name = pod["metadata"]["name"]
        given.setdefault(name, free.pop())
        return Behaviour(address=given[name])

    nodes(gpus=3, script=script)
    make(client, namespace, manifest("a", replicas=3))
    own = path_of(API, "InferenceService", namespace, "a")
    wait_for_condition(client, namespace, "a", lambda c: c.get("reason") == "Serving")
    wait_for("all of them", lambda: client.get(own)["status"]["rollout"]["complete"])
    told = wait_for("what they say", lambda: client.get(own)["status"].get("reported"), 40)
    assert (told["running"], told["waiting"], told["version"]) == (14, 120, ANSWER["version"])
    shown = cluster.kubectl("get", "ois/a", "-n", namespace).stdout.splitlines()
    assert shown[0].split()[5] == "QUEUE" and shown[1].split()[5] == "120"

    client.patch(own, {"spec": {"replicas": 2}})
    left = wait_for(
        "two pods",
        lambda: (
            found
            if len(found := {pod["metadata"]["name"] for pod in pods_of(client, namespace, "a")})
            == 2
            else None
        ),
    )
    assert sorted(LOADS[given[name]] for name in left) == [5, 9]
