"""A rolling update and a scale-down under streams through the Service: none is cut or refused."""

from __future__ import annotations

import dataclasses
import http.client
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.kube_api import Client, path_of
from tests.cluster.node_agent import Node
from tests.cluster.test_e2e import API, make, manifest, pods_of, wait_until_ready
from tests.server.tiny_models import make_tiny

pytestmark = [pytest.mark.usefixtures("operator"), pytest.mark.timeout(600)]

SHORT = 4, 60
"""Clients at a time, and tokens of an answer: some 0.3 s."""
LONG = 6, 1500
"""Longer than the pause before a drain: those that are in the midst of one end in it."""


@pytest.fixture
def tiny_node(cluster: Cluster, nodes: Callable[..., Node], tmp_path: Path) -> Iterator[Node]:
    """A node whose server image holds a tiny model in /models/tiny."""
    folder = make_tiny("llama2", tmp_path / "tiny", max_position_embeddings=4096)
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
        self._threads = [
            threading.Thread(target=self._stream, args=(tokens,))
            for clients, tokens in (SHORT, LONG)
            for _ in range(clients)
        ]
        self.problems: list[str] = []
        self.done = {tokens: 0 for _, tokens in (SHORT, LONG)}
        self.refused = 0  # with a hint when to come again

    def __enter__(self) -> Streams:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join()

    def _stream(self, tokens: int) -> None:
        while not self._over.is_set():
            try:
                problem = self._one(tokens)
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            if problem is None:
                self.refused += 1
                time.sleep(0.2)
            elif problem:
                self.problems.append(f"of {tokens} tokens: {problem}")
            else:
                self.done[tokens] += 1

    def _one(self, tokens: int) -> str | None:
        """What went wrong with one answer; "" for a whole one, None for one that was put off."""
        body = {"model": self._model, "prompt": [1, 2, 3], "max_tokens": tokens,
                "ignore_eos": True, "stream": True}  # fmt: skip
        connection = http.client.HTTPConnection(*self._address(), timeout=60)
        try:
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            if answer.status == 503 and answer.getheader("Retry-After"):
                return None
            text = answer.read().decode()
            if answer.status != 200:
                return f"{answer.status}: {text[:200]}"
            lines = [line for line in text.split("\n") if line.startswith("data: ")]
            if not lines or lines[-1] != "data: [DONE]":
                return f"cut after {len(lines)} chunks"
            chunks = [c for line in lines[:-1] for c in json.loads(line[6:])["choices"]]
            reason = chunks[-1]["finish_reason"] if chunks else None
            if reason != "length" or not tokens <= len(chunks) <= tokens + 1:
                return f"{len(chunks)} chunks, ended with {reason}"
            return ""
        finally:
            connection.close()


class Drains:
    """Asks pods that are being deleted what they still answer, until it ends."""

    def __init__(self, client: Client, namespace: str) -> None:
        self._client, self._namespace = client, namespace
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.most: dict[str, int] = {}
        """By pod: the most requests in flight that it told of while it drained."""

    def __enter__(self) -> Drains:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            for pod in pods_of(self._client, self._namespace, "a"):
                ip = pod["status"].get("podIP")
                if not pod["metadata"].get("deletionTimestamp") or not ip:
                    continue
                try:
                    with urllib.request.urlopen(f"http://{ip}:8000/load", timeout=2) as answer:
                        load = json.load(answer)
                except OSError:
                    continue  # it has just ended
                if load["state"] == "draining":
                    name = pod["metadata"]["name"]
                    self.most[name] = max(self.most.get(name, 0), load["server_load"])


def test_nothing_is_lost(cluster: Cluster, client: Client, namespace: str, tiny_node: Node) -> None:
    engine = {"device": "cpu", "maxModelLen": 4000, "kvCacheMemory": "64Mi", "dtype": "float32"}
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

    def mixed() -> None:
        """Until as many long streams as there are clients began anew, on any of the pods."""
        enough = streams.done[LONG[1]] + LONG[0]
        wait_for("long streams", lambda: streams.done[LONG[1]] >= enough, 120)

    with (
        Streams(lambda: cluster.service_address(namespace, "a"), "a") as streams,
        Drains(client, namespace) as drains,
    ):
        mixed()
        # Where a stream goes is chance: a drain that none was in the midst of proves nothing.
        for length in (3900, 3800, 3700):
            client.patch(own, {"spec": {"engine": {"maxModelLen": length}}})
            wait_for("the rolling update", settled, 180, lambda: client.get(own)["status"])
            rolled, of_update = dict(streams.done), dict(drains.most)
            if max(of_update.values(), default=0):
                break
        of_scale_down: dict[str, int] = {}
        mixed()
        for _ in range(3):
            client.patch(own, {"spec": {"replicas": 1}})
            wait_for("the scale-down", settled, 120, lambda: client.get(own)["status"])
            of_scale_down = {n: most for n, most in drains.most.items() if n not in of_update}
            if max(of_scale_down.values(), default=0):
                break
            client.patch(own, {"spec": {"replicas": 2}})
            wait_for("both again", settled, 120, lambda: client.get(own)["status"])
            mixed()
        time.sleep(1)
    print(
        f"{streams.done} streams by tokens, {rolled} until the update was over, {streams.refused} "
        f"put off; in flight in drains: {of_update} in the update, {of_scale_down} after it"
    )
    assert streams.problems == []
    assert streams.done[SHORT[1]] > 20
    # Streams were in the midst of it where a pod went: else nothing was proven.
    assert max(of_update.values(), default=0) > 0
    assert max(of_scale_down.values(), default=0) > 0
