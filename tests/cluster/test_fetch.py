"""A pod's first container fetches the model, and the service says how far it is: real processes,
a Hub of the test's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.kube_api import Client, Object
from tests.cluster.node_agent import Node
from tests.cluster.test_e2e import (
    chat,
    make,
    manifest,
    pod_logs,
    pods_of,
    wait_for_condition,
    wait_for_reason,
    wait_until_ready,
)
from tests.server.loading.hub_server import Hub, running_hub

pytestmark = pytest.mark.usefixtures("operator")

HELD = 22_000_000
"""Of a model of 26 MB: huggingface_hub writes down 10 MiB at a time."""


@pytest.fixture
def hub(cluster: Cluster, tmp_path: Path) -> Iterator[Hub]:
    """Where pods reach it, with example/tiny and the gated example/closed."""
    from tests.server.tiny_models import make_tiny  # late: it imports transformers

    folder = make_tiny("llama3", tmp_path / "tiny", vocab_size=100_000, tie_word_embeddings=True)
    with running_hub(cluster.network.gateway) as running:
        running.repositories |= {"example/tiny": folder, "example/closed": folder}
        running.gated["example/closed"] = "a token"
        yield running
        running.go_on.set()


@pytest.fixture
def node(nodes: Callable[..., Node]) -> Node:
    return nodes(cpus=8, backoff_seconds=1.0)


def service(name: str, hub: Hub) -> Object:
    model = {"uri": f"hf://example/{name}", "endpoint": hub.url}
    return manifest(name, {"device": "cpu", "dtype": "float32"}, model=model)


@pytest.mark.usefixtures("node")
def test_how_far_it_is_and_then_it_serves(
    cluster: Cluster, client: Client, namespace: str, hub: Hub
) -> None:
    hub.hold_after_bytes = HELD
    make(client, namespace, service("tiny", hub))

    def said(found: Object) -> bool:
        return found.get("reason") == "Downloading" and "% of 2" in found["message"]

    told = wait_for_condition(client, namespace, "tiny", said, 60)
    assert told["status"] == "False"
    assert " MiB, " in told["message"] and told["message"].endswith(" MB/s")
    (pod,) = pods_of(client, namespace, "tiny")
    (status,) = pod["status"]["initContainerStatuses"]
    assert status["name"] == "octavo-fetch" and "running" in status["state"]

    hub.go_on.set()
    wait_until_ready(cluster, namespace, "tiny")
    assert chat(*cluster.service_address(namespace, "tiny"), "Hello", "tiny")["choices"]
    (pod,) = pods_of(client, namespace, "tiny")
    assert pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 0
    # It was fetched once, and the server has found all of it.
    assert hub.downloads("model.safetensors").count(None) == 1, pod_logs(cluster, namespace)


@pytest.mark.usefixtures("node")
def test_what_it_cannot_fetch_it_says_in_words(client: Client, namespace: str, hub: Hub) -> None:
    make(client, namespace, service("closed", hub))
    found = wait_for_reason(client, namespace, "closed", "GatedModel", 60)
    assert "it is gated; set HF_TOKEN" in found["message"]
    assert found["message"].count("\n") == 0

    def failing() -> bool:
        (pod,) = pods_of(client, namespace, "closed")
        return bool(pod["status"]["initContainerStatuses"][0]["restartCount"])

    wait_for("another attempt", failing)
    wait_for_reason(client, namespace, "closed", "GatedModel")
