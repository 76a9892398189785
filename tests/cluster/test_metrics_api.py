"""`octavo metrics-api` behind a real API server: who is told what, and who is not."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.hollow import Behaviour
from tests.cluster.kube_api import Client, Object, path_of
from tests.cluster.metrics_api_process import APIREGISTRATION, GROUP, LoadServer, MetricsApi
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import NAMESPACE
from tests.cluster.test_e2e import make, manifest, wait_for_condition

ROOT = f"/apis/{GROUP}/v1beta2"
ADDRESSES = ("127.7.8.1", "127.7.8.2", "127.7.8.3")


@pytest.fixture
def servers() -> Iterator[list[LoadServer]]:
    made = [LoadServer(address) for address in ADDRESSES]
    yield made
    for each in made:
        each.stop()


@pytest.fixture
def service(
    client: Client, namespace: str, nodes: Callable[..., Node], servers: list[LoadServer]
) -> str:
    """The path of a service's metrics, of two pods that serve; its name is a."""
    free = list(ADDRESSES)
    given: dict[str, str] = {}

    def script(pod: Object) -> Behaviour:
        name = pod["metadata"]["name"]
        if name not in given:
            given[name] = free.pop(0)
        return Behaviour(address=given[name])

    nodes(gpus=3, script=script)
    make(client, namespace, manifest("a", replicas=2))
    wait_for_condition(client, namespace, "a", lambda c: c.get("reason") == "Serving")
    return f"{ROOT}/namespaces/{namespace}/inferenceservices.octavo.dev/a"


def raw(cluster: Cluster, path: str, **options: Any) -> Any:
    """Through the API server; its document, or the error's text."""
    done = cluster.kubectl("get", "--raw", path, check=False, **options)
    return done.stderr if done.returncode else json.loads(done.stdout)


def value(cluster: Cluster, path: str, **options: Any) -> str:
    found = raw(cluster, path, **options)
    return found if isinstance(found, str) else found["items"][0]["value"]


def test_values_through_the_api_server(
    cluster: Cluster,
    client: Client,
    namespace: str,
    metrics_api: MetricsApi,
    service: str,
    servers: list[LoadServer],
) -> None:
    found = raw(cluster, ROOT)
    assert "pods/octavo_demand" in {each["name"] for each in found["resources"]}
    assert len(metrics_api.certificates()) == 1
    wait_for("its discovery", lambda: GROUP in cluster.kubectl("api-versions").stdout)

    depth = f"{service}/octavo_queue_depth"
    wait_for("an explicit 0", lambda: value(cluster, depth) == "0", 30, lambda: raw(cluster, depth))
    servers[0].load |= {"waiting": 7, "running": 2}
    servers[1].load |= {"waiting": 1}
    wait_for("what they say", lambda: value(cluster, depth) == "8")
    # Whichever replica answers: each asks the pods at a moment of its own.
    wait_for("their sum", lambda: value(cluster, f"{service}/octavo_demand") == "10")
    pods = f"{ROOT}/namespaces/{namespace}/pods/*/octavo_running"

    def running() -> list[str]:
        found = raw(cluster, f"{pods}?labelSelector=octavo.dev%2Fservice%3Da")
        return sorted(each["value"] for each in found["items"])

    wait_for("each pod's own", lambda: running() == ["0", "2"])
    old = raw(cluster, depth.replace("v1beta2", "v1beta1"))
    assert old["items"][0]["metricName"] == "octavo_queue_depth"

    for each in servers:
        each.broken = True
    found = wait_for(
        "no number that is too old",
        # Both are asked in one second, but not at once.
        lambda: text if "2 of 2" in (text := str(raw(cluster, depth))) else None,
        60,
        lambda: raw(cluster, depth),
    )
    assert "no sample for 3" in found and "(2 of 2 pods failed)" in found
    for each in servers:
        each.broken = False
    wait_for("again", lambda: value(cluster, depth) == "8")
    # The controller that reads metrics for HPAs may, by Kubernetes' own rules.
    hpa = cluster.service_account_kubeconfig("kube-system", "horizontal-pod-autoscaler")
    wait_for("its right", lambda: value(cluster, depth, kubeconfig=hpa) == "8")


def test_who_is_refused(
    cluster: Cluster, client: Client, namespace: str, metrics_api: MetricsApi, service: str
) -> None:
    path = f"{service}/octavo_queue_depth"
    client.create(path_of("v1", "ServiceAccount", namespace), {"metadata": {"name": "nobody"}})
    nobody = cluster.service_account_kubeconfig(namespace, "nobody")
    assert "forbidden" in raw(cluster, path, kubeconfig=nobody).lower()

    folder = cluster.plane.folder
    front = (folder / "front-proxy-client.crt", folder / "front-proxy-client.key")
    user = f"system:serviceaccount:{namespace}:nobody"
    assert ask(metrics_api, path, None, "admin", "system:masters")[0] == 401
    # A user's own certificate of this cluster is not the front proxy's.
    admin = (folder / "admin.crt", folder / "admin.key")
    assert ask(metrics_api, path, admin, "admin", "system:masters")[0] == 0
    code, told = ask(metrics_api, path, front, user)
    assert code == 403 and user in told["message"]
    wait_for(
        "a user with the right",
        lambda: ask(metrics_api, path, front, "admin", "system:masters")[0] == 200,
    )
    assert ask(metrics_api, ROOT, front, user)[0] == 200


def ask(
    api: MetricsApi, path: str, certificate: Any, user: str, group: str = ""
) -> tuple[int, Object]:
    """A replica itself; 0 for no answer at all."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(*certificate)
    headers = {"X-Remote-User": user, "X-Remote-Group": group}
    request = urllib.request.Request(f"https://127.0.0.1:{api.ports[0]}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
    except OSError:
        return 0, {}


def test_anothers_version_keeps_ours_away(
    cluster: Cluster, client: Client, metrics_api: MetricsApi
) -> None:
    own = path_of(APIREGISTRATION, "APIService", name=f"v1beta2.{GROUP}")
    other = path_of(APIREGISTRATION, "APIService", name=f"v1beta1.{GROUP}")
    live = client.get(other)
    service = {**live["spec"]["service"], "name": "somebody-elses"}
    client.patch(other, {"spec": {"service": service}})
    try:
        wait_for("ours is withdrawn", lambda: client.find(own) is None, 40)
        assert client.get(other)["spec"]["service"]["name"] == "somebody-elses"
        assert f"leads to the Service {NAMESPACE}/somebody-elses" in metrics_api.logs
    finally:
        client.delete(other)
    metrics_api.wait_until_available()
    # Whatever is damaged is mended.
    client.patch(own, {"spec": {"caBundle": None, "insecureSkipTLSVerify": True}})
    wait_for(
        "the bundle is back",
        lambda: (
            (spec := client.get(own)["spec"]).get("caBundle")
            and not spec.get("insecureSkipTLSVerify")
        ),
        40,
    )
    metrics_api.wait_until_available()


def test_a_namespace_is_deleted_while_the_metrics_api_is_gone(
    client: Client, metrics_api: MetricsApi
) -> None:
    name = "goes-without-metrics"
    own = path_of("v1", "Namespace", name=name)
    metrics_api.kill()
    try:
        wait_for("it is not available", lambda: not metrics_api.available(), 60)
        client.create(path_of("v1", "Namespace"), {"metadata": {"name": name}})
        client.delete(own)

        def hangs() -> bool:
            told = (client.find(own) or {}).get("status", {}).get("conditions", ())
            return any(
                (each["type"], each["status"]) == ("NamespaceDeletionDiscoveryFailure", "True")
                for each in told
            )

        wait_for("it hangs", hangs, 30, lambda: client.find(own))
        # The operator waits for a minute, and the controller of namespaces backs off.
        wait_for("it is gone", lambda: client.find(own) is None, 150, lambda: client.find(own))
        registered = path_of(APIREGISTRATION, "APIService", name=f"v1beta2.{GROUP}")
        assert client.find(registered) is None
    finally:
        metrics_api.begin_again()
    metrics_api.wait_until_available()
