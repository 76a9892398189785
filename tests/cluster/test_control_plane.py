"""What the other cluster tests stand on: the control plane is Kubernetes' own and complete."""

from __future__ import annotations

import http.server
import json
import ssl
import subprocess
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from tests.cluster.build import KUBERNETES_VERSION
from tests.cluster.certificates import encode
from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.hollow import steady
from tests.cluster.kube_api import ApiError, Client, path_of
from tests.cluster.node_agent import Node

Kubectl = Callable[..., subprocess.CompletedProcess[str]]
WIDGET = "tests.octavo.dev"


def config_map(namespace: str, name: str, owner: dict[str, Any] | None = None) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": name, "namespace": namespace}
    if owner:
        reference = {key: owner["metadata"][key] for key in ("name", "uid")}
        meta["ownerReferences"] = [
            {"apiVersion": owner["apiVersion"], "kind": owner["kind"], **reference}
        ]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"a": "b"}}


def test_it_says_its_real_version(client: Client, kubectl: Kubectl) -> None:
    version = client.get("/version")

    assert version["gitVersion"] == KUBERNETES_VERSION
    said = json.loads(kubectl("version", "-o", "json").stdout)
    assert said["serverVersion"]["gitVersion"] == KUBERNETES_VERSION


def test_authorisation_is_by_roles(cluster: Cluster, namespace: str) -> None:
    accounts = path_of("v1", "ServiceAccount", namespace)
    cluster.client.create(accounts, {"metadata": {"name": "reader"}})
    mine = cluster.service_account_kubeconfig(namespace, "reader")
    refused = cluster.kubectl("get", "pods", "-n", namespace, kubeconfig=mine, check=False)
    assert "forbidden" in refused.stderr
    assert f"system:serviceaccount:{namespace}:reader" in refused.stderr

    role = ["create", "role", "pods", "--verb=list", "--resource=pods", "-n", namespace]
    cluster.kubectl(*role)
    subject = f"--serviceaccount={namespace}:reader"
    cluster.kubectl("create", "rolebinding", "pods", "--role=pods", subject, "-n", namespace)

    def allowed() -> bool:
        done = cluster.kubectl("get", "pods", "-n", namespace, kubeconfig=mine, check=False)
        return done.returncode == 0

    wait_for("the role binding takes effect", allowed, 10)


def test_schema_and_expressions_are_enforced(client: Client, namespace: str) -> None:
    """A custom resource: pruning aside, what emulators lack."""
    properties = {
        "spec": {
            "type": "object",
            "properties": {"size": {"type": "integer", "maximum": 8}},
            "x-kubernetes-validations": [
                {"rule": "self.size % 2 == 0", "message": "must be even", "fieldPath": ".size"}
            ],
        }
    }
    name = f"{namespace.replace('-', '')}s"
    kind = f"{name[:-1].capitalize()}"
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{name}.{WIDGET}"},
        "spec": {
            "group": WIDGET,
            "scope": "Namespaced",
            "names": {"plural": name, "kind": kind},
            "versions": [
                {
                    "name": "v1", "served": True, "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}},
                }
            ],
        },
    }  # fmt: skip
    definitions = path_of("apiextensions.k8s.io/v1", "CustomResourceDefinition")
    client.create(definitions, definition)
    path = f"/apis/{WIDGET}/v1/namespaces/{namespace}/{name}"

    def make(size: int) -> str:
        body = {"apiVersion": f"{WIDGET}/v1", "kind": kind, "metadata": {"generateName": "a-"}}
        try:
            client.create(path, {**body, "spec": {"size": size}})
        except ApiError as error:
            return str(error)
        return "created"

    try:
        wait_for("the new resource is served", lambda: make(2) == "created", 15)
        assert "spec.size" in make(9)
        assert "spec.size" in make(3) and "must be even" in make(3)
    finally:
        client.delete(f"{definitions}/{name}.{WIDGET}")


def test_server_side_apply_tells_conflicts(client: Client, namespace: str) -> None:
    client.apply(config_map(namespace, "shared"), "one")
    path = path_of("v1", "ConfigMap", namespace, "shared")
    other = config_map(namespace, "shared")
    other["data"]["a"] = "c"

    with pytest.raises(ApiError, match="conflict") as refused:
        client.apply(other, "two", force=False)

    assert refused.value.code == 409
    assert client.get(path)["data"]["a"] == "b"


def test_dependents_are_collected(client: Client, namespace: str) -> None:
    owner = client.apply(config_map(namespace, "owner"))
    client.apply(config_map(namespace, "dependent", owner))

    client.delete(path_of("v1", "ConfigMap", namespace, "owner"))

    path = path_of("v1", "ConfigMap", namespace, "dependent")
    wait_for("the dependent is collected", lambda: client.find(path) is None)


def test_a_namespace_goes_with_all_that_is_in_it(client: Client, namespace: str) -> None:
    client.apply(config_map(namespace, "something"))
    path = path_of("v1", "Namespace", name=namespace)

    client.delete(path)

    wait_for("the namespace is gone", lambda: client.find(path) is None)
    client.create(path_of("v1", "Namespace"), {"metadata": {"name": namespace}})


class _Aggregated(http.server.BaseHTTPRequestHandler):
    """An API server's least: a group with no resources; remembers who the proxy says is asking."""

    users: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.users.append(self.headers.get("X-Remote-User", ""))
        group = {"kind": "APIResourceList", "apiVersion": "v1", "resources": []}
        body = json.dumps({**group, "groupVersion": "front.octavo.dev/v1"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_aggregation_layer_reaches_a_server_of_ours(
    cluster: Cluster, client: Client, namespace: str
) -> None:
    """A host process behind a Service with endpoints, as a metrics API in a test would be.

    With --enable-aggregator-routing a Service of type ExternalName is refused.
    """
    issued = cluster.plane.authority.issue(
        f"front-{namespace}", host_names=(f"front.{namespace}.svc",)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*issued)
    server = http.server.ThreadingHTTPServer((cluster.network.gateway, 0), _Aggregated)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    port = server.server_address[1]
    meta = {"name": "front", "namespace": namespace}
    ports = {"ports": [{"port": port}]}
    client.apply({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": ports})
    labels = {"kubernetes.io/service-name": "front"}
    client.apply(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**meta, "labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [cluster.network.gateway], "conditions": {"ready": True}}],
            **ports,
        }
    )
    authority = encode(cluster.plane.authority.certificate_path.read_bytes())
    spec = {
        "group": "front.octavo.dev", "version": "v1", "caBundle": authority,
        "service": {**meta, "port": port}, "groupPriorityMinimum": 100, "versionPriority": 100,
    }  # fmt: skip
    service = {"metadata": {"name": "v1.front.octavo.dev"}, "spec": spec}
    services = path_of("apiregistration.k8s.io/v1", "APIService")
    client.create(services, service)
    path = f"{services}/v1.front.octavo.dev"

    def available() -> bool:
        conditions = client.get(path).get("status", {}).get("conditions", [])
        return any(c["type"] == "Available" and c["status"] == "True" for c in conditions)

    try:
        wait_for("the APIService is available", available, 15, lambda: client.get(path)["status"])
        answer = client.get("/apis/front.octavo.dev/v1")
        assert answer["groupVersion"] == "front.octavo.dev/v1"
        assert "octavo-test-admin" in _Aggregated.users
    finally:
        client.delete(path)
        server.shutdown()
        thread.join()
        server.server_close()


def test_deployment_becomes_pods_and_endpoints(
    client: Client, namespace: str, nodes: Callable[..., Node], cluster: Cluster
) -> None:
    """Controllers, scheduler, hollow node and endpoint slices together."""
    nodes(script=steady)
    labels = {"app": "x"}
    container = {"name": "c", "image": "anything"}
    client.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "x", "namespace": namespace},
            "spec": {
                "replicas": 3,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        }
    )
    client.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "x", "namespace": namespace},
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8000}]},
        }
    )

    wait_for("three endpoints", lambda: len(cluster.endpoints(namespace, "x")) == 3)

    assert all(port == 8000 for _, port in cluster.endpoints(namespace, "x"))
    path = path_of("apps/v1", "Deployment", namespace, "x")
    wait_for("all are ready", lambda: client.get(path)["status"].get("readyReplicas") == 3)
