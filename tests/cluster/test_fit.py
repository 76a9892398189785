"""FitsAccelerator on a real control plane: a Hub of the test's own, nodes with labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from tests.cluster.cluster import wait_for
from tests.cluster.hollow import steady
from tests.cluster.kube_api import Client, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import Operator
from tests.cluster.test_e2e import API, condition, make, manifest, pods_of
from tests.server.models.published_configs import MISTRAL


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(MISTRAL).encode()
        self.send_response(403 if "gated" in self.path else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(operator: Operator) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    operator.restart(hub=f"http://127.0.0.1:{server.server_port}")
    yield
    operator.restart()
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("hub")
def test_what_fits_what_does_not_and_what_never_will(
    client: Client, namespace: str, nodes: Callable[..., Node]
) -> None:
    nodes(gpus=9, script=steady, labels={"nvidia.com/gpu.memory": "15360"})

    def fit(name: str) -> Callable[[], dict[str, Any] | None]:
        def look() -> dict[str, Any] | None:
            found = client.get(path_of(API, "InferenceService", namespace, name))
            told: dict[str, Any] = condition(found, "FitsAccelerator")
            return told if told and told["reason"] != "BeingRead" else None

        return look

    specs = {
        "one": {},
        "two": {"tensorParallelSize": 2},
        "three": {"tensorParallelSize": 3},
        "cpu": {"device": "cpu"},
    }
    for name, engine in specs.items():
        make(client, namespace, manifest(name, engine))
    make(client, namespace, manifest("gated", {}, model={"uri": "hf://example/gated"}))
    told = {"uri": "hf://example/gated", "config": MISTRAL}
    make(client, namespace, manifest("told", {}, model=told))
    found = {name: wait_for(name, fit(name)) for name in (*specs, "gated", "told")}
    assert {name: (each["status"], each["reason"]) for name, each in found.items()} == {
        "one": ("False", "DoesNotFit"),
        "two": ("True", "Fits"),
        "three": ("False", "InvalidTensorParallelSize"),
        "cpu": ("True", "NoAccelerator"),
        "gated": ("Unknown", "GatedModel"),
        "told": ("False", "DoesNotFit"),
    }
    assert "spec.engine.tensorParallelSize 2 is the smallest that fits" in found["one"]["message"]

    # An estimate only warns; what no GPU can mend starts no pod.
    def ready(name: str) -> dict[str, Any]:
        return condition(client.get(path_of(API, "InferenceService", namespace, name)), "Ready")

    for name in ("one", "two", "gated"):
        wait_for(name, lambda name=name: ready(name).get("status") == "True")
    assert ready("three")["reason"] == "InvalidTensorParallelSize"
    assert not pods_of(client, namespace, "three")
    change = {"spec": {"engine": {"tensorParallelSize": 4}}}
    client.patch(path_of(API, "InferenceService", namespace, "three"), change)
    wait_for("three as four", lambda: ready("three").get("status") == "True")
    # And back: what runs stays.
    change["spec"]["engine"]["tensorParallelSize"] = 5
    client.patch(path_of(API, "InferenceService", namespace, "three"), change)
    wait_for("its word", lambda: ready("three").get("reason") == "InvalidTensorParallelSize")
    assert len(pods_of(client, namespace, "three")) == 1
