"""A rolling update and a scale-down under streams through the Service: none is cut or refused."""

from __future__ import annotations

import dataclasses
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.kube_api import Client, path_of
from tests.cluster.node_agent import Node
from tests.cluster.test_e2e import API, make, manifest, pods_of, wait_until_ready
from tests.server.tiny_models import make_tiny

pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.timeout(300)]

CLIENTS = 4
TOKENS = 60


@pytest.fixture
def tiny_node(cluster: Cluster, nodes: Callable[..., Node], tmp_path: Path) -> Iterator[Node]:
    """A node whose server image holds a tiny model in /models/tiny."""
    folder = make_tiny("llama2", tmp_path / "tiny", max_position_embeddings=512)
    for path in (tmp_path, folder, *folder.iterdir()):
        path.chmod(0o755)
    image = cluster.images["octavo-server"]
    cluster.images["octavo-server"] = dataclasses.replace(image, folders={"/models": tmp_path})
    yield nodes(cpus=16, backoff_seconds=1.0)
    cluster.images["octavo-server"] = image


class Streams:
    """Clients that stream one answer after the other, each on a new connection, until it ends."""

    def __init__(self, address: Callable[[], tuple[str, int]], model: str) -> None:
        self._address, self._model = address, model
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._stream) for _ in range(CLIENTS)]
        self.problems: list[str] = []
        self.done = 0

    def __enter__(self) -> Streams:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join()

    def _stream(self) -> None:
        while not self._over.is_set():
            try:
                if problem := self._one():
                    self.problems.append(problem)
            except (OSError, http.client.HTTPException) as error:
                self.problems.append(f"{type(error).__name__}: {error}")
            self.done += 1

    def _one(self) -> str:
        """What went wrong with one answer; ""."""
        body = {"model": self._model, "prompt": [1, 2, 3], "max_tokens": TOKENS,
                "ignore_eos": True, "stream": True}  # fmt: skip
        connection = http.client.HTTPConnection(*self._address(), timeout=60)
        try:
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            if answer.status == 503 and answer.getheader("Retry-After"):
                time.sleep(0.2)
                return ""
            text = answer.read().decode()
            if answer.status != 200:
                return f"{answer.status}: {text[:200]}"
            lines = [line for line in text.splitlines() if line.startswith("data: ")]
            if not lines or lines[-1] != "data: [DONE]":
                return f"cut after {len(lines)} chunks"
            finished = [json.loads(line[6:]) for line in lines[:-1]]
            reasons = [c["finish_reason"] for each in finished for c in each["choices"]]
            return "" if "length" in reasons else f"ended with {set(reasons)}"
        finally:
            connection.close()


def test_nothing_is_lost(cluster: Cluster, client: Client, namespace: str, tiny_node: Node) -> None:
    engine = {"device": "cpu", "maxModelLen": 256, "kvCacheMemory": "16Mi", "dtype": "float32"}
    model = {"uri": "file:///models/tiny"}
    make(client, namespace, manifest("a", engine, model=model, replicas=2, drain={"seconds": 60}))
    wait_until_ready(cluster, namespace, "a")
    own = path_of(API, "InferenceService", namespace, "a")
    wait_for("both", lambda: client.get(own)["status"].get("readyReplicas") == 2, 60)
    if cluster.kube_proxy_missing:
        pytest.skip("no kube-proxy here: streams do not go through the Service")

    def rollout_over() -> bool:
        status = client.get(own)["status"]
        return bool(
            status["observedGeneration"] == client.get(own)["metadata"]["generation"]
            and status["rollout"]["complete"]
            and status.get("readyReplicas") == client.get(own)["spec"]["replicas"]
        )

    def settled() -> bool:
        # Pods that are ending still answer.
        wanted = client.get(own)["spec"]["replicas"]
        return rollout_over() and len(pods_of(client, namespace, "a")) == wanted

    with Streams(lambda: cluster.service_address(namespace, "a"), "a") as streams:
        time.sleep(1)
        client.patch(own, {"spec": {"engine": {"maxModelLen": 200}}})
        wait_for("the rolling update", settled, 120, lambda: client.get(own)["status"])
        rolled = streams.done
        client.patch(own, {"spec": {"replicas": 1}})
        wait_for("the scale-down", settled, 60, lambda: client.get(own)["status"])
        time.sleep(1)
    print(f"{streams.done} streams, {rolled} until the update was over")
    assert streams.problems == []
    assert streams.done > 20
