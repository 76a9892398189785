"""Hollow nodes: scripted failures for fault tests, many pods for scale tests."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.hollow import CRASH, NEVER_READY, OUT_OF_MEMORY, Behaviour, steady
from tests.cluster.kube_api import Client, Object, path_of
from tests.cluster.node_agent import Node


def scripted(pod: Object) -> Behaviour:
    """By the pod's name."""
    return {
        "unready": NEVER_READY,
        "crash": CRASH,
        "memory": OUT_OF_MEMORY,
        "slow": Behaviour(start_after=0.5, ready_after=0.5),
    }[pod["metadata"]["name"]]


def test_scripted_failures(client: Client, namespace: str, nodes: Callable[..., Node]) -> None:
    node = nodes(script=scripted, gpus=8, backoff_seconds=0.2)

    def make(name: str) -> None:
        container = {
            "name": "main", "image": "any", "resources": {"limits": {"nvidia.com/gpu": "1"}},
        }  # fmt: skip
        selector = {"kubernetes.io/hostname": node.name}
        spec = {"containers": [container], "nodeSelector": selector}
        client.create(path_of("v1", "Pod", namespace), {"metadata": {"name": name}, "spec": spec})

    def main(name: str) -> Object:
        pod = client.get(path_of("v1", "Pod", namespace, name))
        found: Object = (pod.get("status", {}).get("containerStatuses") or [{}])[0]
        return found

    for name in ("unready", "crash", "memory", "slow"):
        make(name)
    wait_for("slow is ready in the end", lambda: main("slow").get("ready"))
    wait_for("two restarts", lambda: main("crash").get("restartCount", 0) >= 2)
    wait_for("out of memory", lambda: main("memory").get("lastState"))

    assert main("crash")["lastState"]["terminated"]["message"] == "it broke"
    ended = main("memory")["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")
    assert main("unready")["state"].get("running") and not main("unready")["ready"]
    path = path_of("v1", "Pod", namespace, "unready")
    client.delete(path)
    wait_for("it is deleted as the kubelet would", lambda: client.find(path) is None)


def test_a_removed_node_takes_its_pods_along(
    client: Client, namespace: str, nodes: Callable[..., Node], cluster: Cluster
) -> None:
    node = nodes(script=steady)
    spec = {
        "containers": [{"name": "main", "image": "any"}],
        "nodeSelector": {"kubernetes.io/hostname": node.name},
    }
    client.create(path_of("v1", "Pod", namespace), {"metadata": {"name": "lost"}, "spec": spec})
    path = path_of("v1", "Pod", namespace, "lost")
    running = wait_for("it runs", lambda: client.get(path)["status"].get("podIP"))
    assert running

    cluster.remove_node(node.name)

    wait_for("the pod goes with its node", lambda: client.find(path) is None)


def test_two_hundred_pods(client: Client, namespace: str, nodes: Callable[..., Node]) -> None:
    """The control plane and the agent carry what scale tests need; a figure, not a limit."""
    for index in range(4):
        nodes(f"many-{index}", script=steady, gpus=64)
    labels = {"app": "many"}
    container = {
        "name": "main", "image": "any", "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }  # fmt: skip
    began = time.monotonic()
    client.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "many", "namespace": namespace},
            "spec": {
                "replicas": 200,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        }
    )
    path = path_of("apps/v1", "Deployment", namespace, "many")

    def ready() -> bool:
        return bool(client.get(path).get("status", {}).get("readyReplicas") == 200)

    wait_for("200 are ready", ready, 60, lambda: client.get(path).get("status"))
    print(f"200 hollow pods ready in {time.monotonic() - began:.1f} s")
