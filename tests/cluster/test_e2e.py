"""From a manifest to a completion and back, on a real API server, with a real model on CPU."""

from __future__ import annotations

import dataclasses
import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.hollow import OUT_OF_MEMORY, Behaviour, steady
from tests.cluster.images import ROOT
from tests.cluster.kube_api import Client, Object, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import NAMESPACE, SERVICE_ACCOUNT, Operator

Kubectl = Callable[..., Any]
EXAMPLES = ROOT / "examples"
API = "octavo.dev/v1alpha1"
LABEL = "octavo.dev/service"

pytestmark = pytest.mark.usefixtures("operator")


@pytest.fixture
def real_node(
    cluster: Cluster, nodes: Callable[..., Node], demo_model_path: Path
) -> Iterator[Node]:
    """A node whose server image holds the demo model in /models."""
    image = cluster.images["octavo-server"]
    folders = {"/models": demo_model_path.parent}
    cluster.images["octavo-server"] = dataclasses.replace(image, folders=folders)
    yield nodes(cpus=8, backoff_seconds=1.0)
    cluster.images["octavo-server"] = image


def manifest(name: str, engine: Object | None = None, **spec: Any) -> Object:
    model = {"uri": "hf://example/model"}
    return {
        "apiVersion": API,
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"model": model, **({"engine": engine} if engine else {}), **spec},
    }


def condition(service: Object, kind: str) -> Object:
    conditions = service.get("status", {}).get("conditions", ())
    return next((c for c in conditions if c["type"] == kind), {})


def pods_of(client: Client, namespace: str, name: str) -> list[Object]:
    return client.list(path_of("v1", "Pod", namespace), labelSelector=f"{LABEL}={name}")


def pod_logs(cluster: Cluster, namespace: str) -> str:
    """The last lines of every container run in that namespace."""
    logs = sorted(cluster.agent.log_folder.glob(f"{namespace}_*/*/*.log"))
    return "\n".join(f"{log}:\n{log.read_text(errors='replace')[-2000:]}" for log in logs)


def chat(address: str, port: int, text: str, model: str) -> Object:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 32,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"http://{address}:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: Object = json.load(response)
        return answer


def test_from_manifest_to_completion_and_back(
    cluster: Cluster, client: Client, kubectl: Kubectl, namespace: str, real_node: Node
) -> None:
    kubectl("apply", "-n", namespace, "-f", str(EXAMPLES / "smollm2.yaml"))
    wait_until_ready(cluster, namespace, "smollm2")

    address, port = cluster.endpoints(namespace, "smollm2")[0]
    answer = chat(address, port, "What is the capital of France?", "smollm2")
    assert "Paris" in answer["choices"][0]["message"]["content"]
    address, port = cluster.service_address(namespace, "smollm2")
    answer = chat(address, port, "What is the capital of France?", "smollm2")
    assert answer["usage"]["completion_tokens"] > 0
    shown = kubectl("get", "ois", "smollm2", "-n", namespace).stdout
    assert "True" in shown and "1/1" in shown, shown

    change = {"spec": {"engine": {"maxModelLen": 1024}}}
    before = pods_of(client, namespace, "smollm2")[0]["metadata"]["uid"]
    kubectl("patch", "ois", "smollm2", "-n", namespace, "--type=merge", "-p", json.dumps(change))

    def rolled() -> bool:
        pods = pods_of(client, namespace, "smollm2")
        args = [pod["spec"]["containers"][0]["args"] for pod in pods]
        return len(pods) == 1 and "--max-model-len=1024" in args[0]

    wait_for("the pod is replaced", rolled, 60, lambda: pod_logs(cluster, namespace))
    assert pods_of(client, namespace, "smollm2")[0]["metadata"]["uid"] != before
    events = cluster.events(namespace, "smollm2")
    told = [event["message"] for event in events if event["reason"] == "RollingOut"]
    assert any("maxModelLen" in message and "1024" in message for message in told), told
    wait_until_ready(cluster, namespace, "smollm2")
    chat(*cluster.service_address(namespace, "smollm2"), "And of Italy?", "smollm2")

    kubectl("delete", "ois", "smollm2", "-n", namespace, "--timeout=60s")
    left: list[str] = []

    def nothing_left() -> bool:
        left[:] = leftovers(client, namespace)
        return not left

    wait_for("everything of it is gone", nothing_left, 60, lambda: left)


def test_two_gpus_a_pod_on_the_node_that_has_them(
    client: Client, kubectl: Kubectl, namespace: str, nodes: Callable[..., Node]
) -> None:
    nodes("one-gpu", gpus=1, script=steady)
    nodes("two-gpus", gpus=2, script=steady)
    service = manifest("wide", {"tensorParallelSize": 2})

    kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(service))
    kubectl("wait", "--for=condition=Ready", "ois/wide", "-n", namespace, "--timeout=30s")

    (pod,) = pods_of(client, namespace, "wide")
    (container,) = pod["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert "--tensor-parallel-size=2" in container["args"]
    assert pod["spec"]["nodeName"] == "two-gpus"


def test_too_few_gpus_is_a_condition(
    client: Client, namespace: str, nodes: Callable[..., Node]
) -> None:
    nodes("one-gpu", gpus=1, script=steady)
    make(client, namespace, manifest("wide", {"tensorParallelSize": 2}))

    # At first the scheduler may know the new node as not ready yet, and say that instead.
    def lacks_gpus(found: Object) -> bool:
        return found.get("reason") == "Unschedulable" and "nvidia.com/gpu" in found["message"]

    wait_for_condition(client, namespace, "wide", lacks_gpus)


def test_missing_model_is_a_condition_and_an_event(
    cluster: Cluster, client: Client, namespace: str, real_node: Node
) -> None:
    """A real server ends with the reason as its termination message."""
    engine = {"device": "cpu"}
    service = manifest("lost", engine, model={"uri": "file:///models/no-such-model"})
    make(client, namespace, service)

    found = wait_for_reason(client, namespace, "lost", "ModelNotFound", 60)

    assert "no-such-model" in found["message"] and "Traceback" not in found["message"]
    assert found["message"].count("\n") == 0

    def told() -> bool:
        events = cluster.events(namespace, "lost")
        return any(e["type"] == "Warning" and e["reason"] == "ModelNotFound" for e in events)

    wait_for("the event", told)


def test_out_of_memory_is_a_condition(
    client: Client, namespace: str, nodes: Callable[..., Node]
) -> None:
    """The kernel kills without a word; the container's reason says it."""
    nodes("small", gpus=1, script=lambda pod: OUT_OF_MEMORY, backoff_seconds=0.5)
    make(client, namespace, manifest("big"))

    wait_for_reason(client, namespace, "big", "OutOfMemory")


def test_a_crash_that_ends_becomes_ready(
    client: Client, namespace: str, nodes: Callable[..., Node]
) -> None:
    """The condition follows what is, not what was."""
    broken = [True]
    behaviours = {True: Behaviour(exits_after=0.1, message="it broke"), False: Behaviour()}
    nodes("shaky", gpus=1, script=lambda pod: behaviours[broken[0]], backoff_seconds=0.5)
    make(client, namespace, manifest("shaky"))
    wait_for_condition(client, namespace, "shaky", lambda c: c.get("status") == "False")

    broken[0] = False

    wait_for_condition(client, namespace, "shaky", lambda c: c.get("status") == "True")


def test_a_restarted_operator_goes_on(
    client: Client, namespace: str, nodes: Callable[..., Node], operator: Operator
) -> None:
    nodes("steady", gpus=2, script=steady)
    make(client, namespace, manifest("before"))
    wait_for_condition(client, namespace, "before", lambda c: c.get("status") == "True")

    operator.restart()
    make(client, namespace, manifest("after"))

    wait_for_condition(client, namespace, "after", lambda c: c.get("status") == "True")
    operator.check()


def test_names_that_are_no_dns_labels_are_refused(kubectl: Kubectl, namespace: str) -> None:
    service = json.dumps(manifest("qwen3-0.6b"))

    done = kubectl("apply", "-n", namespace, "-f", "-", stdin=service, check=False)

    assert done.returncode != 0
    assert "metadata.name" in done.stderr and "DNS" in done.stderr


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_examples_apply(kubectl: Kubectl, namespace: str, example: Path) -> None:
    kubectl("apply", "-n", namespace, "--validate=strict", "-f", str(example))


def test_the_operator_may_do_no_more_than_it_needs(kubectl: Kubectl) -> None:
    user = f"system:serviceaccount:{NAMESPACE}:{SERVICE_ACCOUNT}"
    for verb, *what in (
        ("get", "secrets"), ("delete", "pods"), ("delete", "namespaces"),
        ("create", "pods", "--subresource=exec"), ("create", "pods", "--subresource=binding"),
        ("update", "inferenceservices"), ("create", "clusterrolebindings"),
    ):  # fmt: skip
        asked = ["auth", "can-i", verb, *what, f"--as={user}", "--all-namespaces"]
        assert kubectl(*asked, check=False).stdout.strip() == "no", (verb, *what)


def make(client: Client, namespace: str, service: Object) -> None:
    client.create(path_of(API, "InferenceService", namespace), service)


def wait_for_condition(
    client: Client,
    namespace: str,
    name: str,
    accept: Callable[[Object], bool],
    timeout_seconds: float = 30,
) -> Object:
    path = path_of(API, "InferenceService", namespace, name)

    def accepted() -> Object | None:
        found = condition(client.get(path), "Ready")
        return found if accept(found) else None

    seen: Callable[[], object] = lambda: client.get(path).get("status")  # noqa: E731
    return wait_for(f"condition Ready of {name}", accepted, timeout_seconds, seen)


def wait_for_reason(
    client: Client, namespace: str, name: str, reason: str, timeout_seconds: float = 30
) -> Object:
    def accept(found: Object) -> bool:
        return found.get("status") == "False" and found.get("reason") == reason

    return wait_for_condition(client, namespace, name, accept, timeout_seconds)


def wait_until_ready(cluster: Cluster, namespace: str, name: str) -> None:
    """`kubectl wait`, and what its pods printed if that fails."""
    waited = ["wait", "--for=condition=Ready", f"ois/{name}", "-n", namespace, "--timeout=90s"]
    done = cluster.kubectl(*waited, check=False, timeout_seconds=120)
    if done.returncode:
        shown = cluster.kubectl("describe", f"ois/{name}", "-n", namespace).stdout
        pytest.fail(f"{done.stderr}\n{shown}\n{pod_logs(cluster, namespace)}")


def leftovers(client: Client, namespace: str) -> list[str]:
    kinds = {
        "apps/v1": ["Deployment", "ReplicaSet"],
        "v1": ["Service", "Pod"],
        "policy/v1": ["PodDisruptionBudget"],
        "discovery.k8s.io/v1": ["EndpointSlice"],
    }
    return [
        f"{kind} {item['metadata']['name']}"
        for version, names in kinds.items()
        for kind in names
        for item in client.list(path_of(version, kind, namespace))
    ]
