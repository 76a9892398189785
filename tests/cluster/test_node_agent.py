"""Real pods on a test node: what a kubelet would do, seen from the API."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.kube_api import Client, Object, path_of
from tests.cluster.node_agent import Node

SERVER = """
import http.server, json, os, signal, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/env":
            text = json.dumps(dict(os.environ))
        elif self.path == "/id":
            text = json.dumps([os.getuid(), os.getgid()])
        elif self.path == "/ready":
            if not os.path.exists("/scratch/ready"): return self.send_error(503)
            text = "yes"
        elif self.path.startswith("/touch"):
            try: open(self.path[6:], "w").close(); text = "done"
            except OSError as error: text = error.strerror
        elif self.path.startswith("/fetch/"):
            import urllib.request
            text = urllib.request.urlopen("http://" + self.path[7:], timeout=5).read().decode()
        else:
            try: text = open(self.path).read()
            except OSError as error: return self.send_error(404, error.strerror)
        self.send_response(200); self.end_headers(); self.wfile.write(text.encode())
    def log_message(self, *a): pass
server = http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler)
def stop(*_):
    with open("/dev/termination-log", "w") as file: file.write("stopped in order")
    threading.Thread(target=server.shutdown).start()
signal.signal(signal.SIGTERM, stop)
server.serve_forever()
"""


@pytest.fixture
def node(nodes: Callable[..., Node]) -> Node:
    return nodes(backoff_seconds=0.3)


@pytest.fixture
def start(client: Client, namespace: str, node: Node) -> Callable[..., str]:
    """`start("name", container={...}, **spec)` creates a pod on the node of this test."""

    def make(name: str, container: Object | None = None, **spec: Any) -> str:
        main = {
            "name": "main", "image": "python", "command": ["python", "-c", SERVER],
            **(container or {}),
        }  # fmt: skip
        body = {
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": node.name},
                "terminationGracePeriodSeconds": 5,
                "containers": [main],
                **spec,
            },
        }
        client.create(path_of("v1", "Pod", namespace), body)
        return path_of("v1", "Pod", namespace, name)

    return make


def status(client: Client, path: str) -> Object:
    found: Object = client.get(path).get("status", {})
    return found


def condition(pod_status: Object, kind: str) -> str:
    found = [c["status"] for c in pod_status.get("conditions", ()) if c["type"] == kind]
    return found[0] if found else ""


def main_state(pod_status: Object) -> Object:
    statuses = pod_status.get("containerStatuses") or [{"state": {}, "restartCount": 0}]
    found: Object = statuses[0]
    return found


def wait_ready(client: Client, path: str, timeout_seconds: float = 30) -> Object:
    def ready() -> Object | None:
        now = status(client, path)
        return now if condition(now, "Ready") == "True" else None

    return wait_for(f"{path} is Ready", ready, timeout_seconds, lambda: status(client, path))


def read(address: str, path: str, port: int = 8000) -> str:
    with urllib.request.urlopen(f"http://{address}:{port}{path}", timeout=5) as response:
        text: str = response.read().decode()
        return text


def gone(client: Client, path: str) -> Callable[[], bool]:
    return lambda: client.find(path) is None


def test_status_is_a_kubelets(client: Client, start: Callable[..., str], node: Node) -> None:
    path = start("plain")

    now = wait_ready(client, path)

    assert now["phase"] == "Running"
    for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready"):
        assert condition(now, kind) == "True", kind
    assert now["podIPs"] == [{"ip": now["podIP"]}]
    assert now["startTime"] and now["hostIP"]
    main = main_state(now)
    assert main["ready"] and main["started"] and main["restartCount"] == 0
    assert main["state"]["running"]["startedAt"]
    assert client.get(path)["spec"]["nodeName"] == node.name


def test_two_pods_listen_on_one_port_and_reach_each_other(
    client: Client, start: Callable[..., str]
) -> None:
    paths = [start("one"), start("two")]
    first, second = (wait_ready(client, path)["podIP"] for path in paths)
    wait_for("both listen", lambda: _listens(first) and _listens(second))

    assert first != second
    assert '"HOSTNAME": "one"' in read(first, "/env")
    assert '"HOSTNAME": "two"' in read(first, f"/fetch/{second}:8000/env")


def test_probes_gate_ready_and_endpoints(
    client: Client, start: Callable[..., str], namespace: str, cluster: Cluster
) -> None:
    probe = {"httpGet": {"path": "/ready", "port": 8000}, "periodSeconds": 1, "failureThreshold": 1}
    alive = {"exec": {"command": ["test", "-e", "/scratch"]}, "periodSeconds": 1}
    mounts = [{"name": "work", "mountPath": "/scratch"}]
    container = {"readinessProbe": probe, "livenessProbe": alive, "volumeMounts": mounts}
    path = start("gated", container, volumes=[{"name": "work", "emptyDir": {}}])
    service = {"selector": {"app": "gated"}, "ports": [{"port": 80, "targetPort": 8000}]}
    meta = {"name": "gated", "namespace": namespace}
    client.apply({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service})
    wait_for("it runs", lambda: status(client, path).get("phase") == "Running")
    ip = status(client, path)["podIP"]
    wait_for("it listens", lambda: _listens(ip))
    time.sleep(1.5)
    assert condition(status(client, path), "Ready") == "False"
    assert cluster.endpoints(namespace, "gated") == []

    read(ip, "/touch/scratch/ready")

    wait_ready(client, path)
    wait_for("it is an endpoint", lambda: cluster.endpoints(namespace, "gated") == [(ip, 8000)])
    address, port = cluster.service_address(namespace, "gated")
    wait_for("the Service's address answers", lambda: _answers(address, port, "/ready"))
    if not cluster.kube_proxy_missing:  # also from inside the pod network
        other = wait_ready(client, start("caller"))["podIP"]
        wait_for("the caller listens", lambda: _listens(other))
        assert read(other, f"/fetch/{address}:{port}/ready") == "yes"


def test_environment_and_volumes(client: Client, start: Callable[..., str], namespace: str) -> None:
    secret = {"metadata": {"name": "s"}, "stringData": {"token": "hush", "other": "o"}}
    client.create(path_of("v1", "Secret", namespace), secret)
    config = {"metadata": {"name": "c"}, "data": {"colour": "blue"}}
    client.create(path_of("v1", "ConfigMap", namespace), config)
    env = [
        {"name": "PLAIN", "value": "is $(POD)"},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}},
    ]
    container: Object = {
        "env": [*env[1:], env[0]],
        "envFrom": [{"configMapRef": {"name": "c"}, "prefix": "X_"}],
        "volumeMounts": [
            {"name": "s", "mountPath": "/etc/deep/new/secret", "readOnly": True},
            {"name": "c", "mountPath": "/var/run/config"},
        ],
    }
    volumes = [
        {"name": "s", "secret": {"secretName": "s"}},
        {"name": "c", "configMap": {"name": "c", "items": [{"key": "colour", "path": "a/b"}]}},
    ]
    init = {
        "name": "init", "image": "python", "command": ["sh", "-c", "test -e /etc/deep/new/secret"],
        "volumeMounts": [container["volumeMounts"][0]],
    }  # fmt: skip
    path = start("full", container, volumes=volumes, initContainers=[init])
    ip = wait_ready(client, path)["podIP"]
    wait_for("it listens", lambda: _listens(ip))

    seen = read(ip, "/env")
    for word in ('"PLAIN": "is full"', f'"IP": "{ip}"', '"TOKEN": "hush"', '"X_colour": "blue"'):
        assert word in seen
    assert read(ip, "/etc/deep/new/secret/token") == "hush"
    assert read(ip, "/var/run/config/a/b") == "blue"
    assert "Read-only" in read(ip, "/touch/etc/deep/new/secret/x")
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert read(ip, f"{account}/namespace") == namespace
    assert read(ip, f"{account}/token").count(".") == 2
    assert read(ip, "/touch/root-of-image") == "done"
    for left in ("/etc/deep", "/var/run/config", "/root-of-image", account):
        assert not Path(left).exists(), f"{left} was made on the host"


def test_security_context(client: Client, start: Callable[..., str]) -> None:
    context = {"runAsNonRoot": True, "runAsUser": 4321, "readOnlyRootFilesystem": True}
    mounts = [{"name": "work", "mountPath": "/scratch"}]
    container = {"securityContext": context, "volumeMounts": mounts}
    path = start("careful", container, volumes=[{"name": "work", "emptyDir": {}}])
    ip = wait_ready(client, path)["podIP"]
    wait_for("it listens", lambda: _listens(ip))

    assert read(ip, "/id") == "[4321, 0]"
    assert "Read-only" in read(ip, "/touch/x") or "denied" in read(ip, "/touch/x")
    assert read(ip, "/touch/scratch/x") == "done"


def test_termination_message_and_back_off(
    client: Client, start: Callable[..., str], namespace: str, cluster: Cluster
) -> None:
    command = ["sh", "-c", "echo no such model > /dev/termination-log; exit 3"]
    path = start("crashing", {"command": command})

    def looping() -> Object | None:
        main = main_state(status(client, path))
        waits = main["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff"
        return main if waits and main["restartCount"] >= 2 else None

    main = wait_for("it is in back-off", looping, seen=lambda: status(client, path))

    ended = main["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (3, "Error")
    assert ended["message"] == "no such model\n"
    assert condition(status(client, path), "Ready") == "False"
    wait_for(
        "the event",
        lambda: any(e["reason"] == "BackOff" for e in cluster.events(namespace, "crashing")),
    )


def test_a_crash_restarts_the_container(client: Client, start: Callable[..., str]) -> None:
    command = ["sh", "-c", "test -e /scratch/again || { touch /scratch/again; exit 1; }; sleep 60"]
    mounts = [{"name": "work", "mountPath": "/scratch"}]
    volumes = [{"name": "work", "emptyDir": {}}]
    path = start("twice", {"command": command, "volumeMounts": mounts}, volumes=volumes)

    def restarted() -> bool:
        main = main_state(status(client, path))
        return main["restartCount"] == 1 and bool(main.get("ready"))

    wait_for("it runs again", restarted, seen=lambda: status(client, path))


def test_deletion_runs_the_hook_then_signals_within_the_grace(
    client: Client, start: Callable[..., str], tmp_path: Path
) -> None:
    """preStop first, SIGTERM after it, and the object is gone once the processes are."""
    hook = {"preStop": {"httpGet": {"path": "/touch/scratch/hook", "port": 8000}}}
    mounts = [{"name": "work", "mountPath": "/scratch"}]
    volumes = [{"name": "work", "emptyDir": {}}]
    polite = start("polite", {"lifecycle": hook, "volumeMounts": mounts}, volumes=volumes)
    stubborn_command = ["sh", "-c", "trap '' TERM; while :; do sleep 0.2; done"]
    stubborn = start("stubborn", {"command": stubborn_command})
    ip = wait_ready(client, polite)["podIP"]
    wait_ready(client, stubborn)
    wait_for("it listens", lambda: _listens(ip))

    began = time.monotonic()
    client.delete(polite)
    wait_for("polite is gone", gone(client, polite), 10)
    assert time.monotonic() - began < 4
    assert not _listens(ip)

    began = time.monotonic()
    client.delete(stubborn, gracePeriodSeconds=1)
    assert client.get(stubborn)["metadata"]["deletionTimestamp"]
    wait_for("stubborn is gone", gone(client, stubborn), 10)
    assert 0.8 < time.monotonic() - began < 5


def test_unsupported_field_is_refused_with_an_event(
    client: Client, start: Callable[..., str], namespace: str, cluster: Cluster
) -> None:
    path = start("demanding", hostNetwork=True, containers=[{"name": "a", "image": "python"}])

    wait_for("it failed", lambda: status(client, path).get("phase") == "Failed")

    now = status(client, path)
    assert now["reason"] == "UnsupportedField"
    assert "spec.hostNetwork" in now["message"]
    wait_for(
        "the event",
        lambda: any(e["reason"] == "UnsupportedField" for e in cluster.events(namespace)),
    )


def test_unknown_image_waits_and_is_taken_once_it_is_there(
    client: Client, start: Callable[..., str], cluster: Cluster
) -> None:
    path = start("odd", {"image": "example.com/team/odd:1", "command": ["sleep", "60"]})

    def reason() -> str:
        waiting = main_state(status(client, path))["state"].get("waiting", {})
        return str(waiting.get("reason", ""))

    wait_for("the pull is in back-off", lambda: reason() == "ImagePullBackOff")
    cluster.images["odd"] = cluster.images["python"]
    try:
        wait_ready(client, path)
    finally:
        del cluster.images["odd"]


def test_gpus_decide_the_node(client: Client, namespace: str, nodes: Callable[..., Node]) -> None:
    """The real scheduler on real processes: one node has GPUs, and not enough for everybody."""
    nodes("without-gpus")
    nodes("with-gpus", gpus=2)

    def make(name: str, gpus: int) -> str:
        container = {
            "name": "main", "image": "python", "command": ["sleep", "60"],
            "resources": {"limits": {"nvidia.com/gpu": str(gpus)}},
        }  # fmt: skip
        spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
        client.create(path_of("v1", "Pod", namespace), {"metadata": {"name": name}, "spec": spec})
        return path_of("v1", "Pod", namespace, name)

    first, second = make("first", 2), None
    wait_ready(client, first)
    second = make("second", 1)

    def refused() -> bool:
        conditions = status(client, second).get("conditions", ())
        return any("Insufficient nvidia.com/gpu" in c.get("message", "") for c in conditions)

    assert client.get(first)["spec"]["nodeName"] == "with-gpus"
    wait_for("the second waits", refused)
    client.delete(first)
    wait_ready(client, second)
    assert client.get(second)["spec"]["nodeName"] == "with-gpus"


def _listens(address: str, port: int = 8000) -> bool:
    try:
        with socket.create_connection((address, port), 1):
            return True
    except OSError:
        return False


def _answers(address: str, port: int, path: str) -> bool:
    try:
        return bool(read(address, path, port))
    except (OSError, urllib.error.URLError):
        return False
