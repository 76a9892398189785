"""HTTPRoutes and InferencePools with the real CRDs of both APIs, and without them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.cluster import wait_for
from tests.cluster.crd_files import ROUTES
from tests.cluster.kube_api import Client, Object, path_of
from tests.cluster.operator_process import Operator
from tests.cluster.route_apis import RouteApis
from tests.cluster.test_e2e import API, condition, make, manifest

GATEWAY_API = "gateway.networking.k8s.io/v1"
POOL_API = "inference.networking.k8s.io/v1"
ROUTE_CRD, POOL_CRD = ROUTES
ROUTE = {"gateways": [{"name": "public"}], "hostnames": ["a.example.com"]}
POOL = {**ROUTE, "inferencePool": {"endpointPicker": {"name": "picker"}}}
BY_HAND = "fieldManager=somebody"
# Far less than the 300 s after which everything is looked at anyway.
SECONDS = 40.0


@pytest.fixture
def allowed(operator: Operator, route_apis: RouteApis) -> Iterator[RouteApis]:
    """The rights, but no CRDs yet."""
    route_apis.allow()
    yield route_apis
    operator.check()


class Service:
    """The InferenceService `a` and what belongs to it."""

    def __init__(self, client: Client, namespace: str, **routing: Any) -> None:
        self._client = client
        self.path = path_of(API, "InferenceService", namespace, "a")
        self.route = path_of(GATEWAY_API, "HTTPRoute", namespace, "a")
        self.pool = path_of(POOL_API, "InferencePool", namespace, "a")
        make(client, namespace, manifest("a", {"device": "cpu"}, routing=routing))

    def says(self, reason: str) -> Object:
        def found() -> Object | None:
            told = condition(self._client.get(self.path), "RoutingReady")
            return told if told.get("reason") == reason else None

        return wait_for(reason, found, SECONDS, lambda: self._client.get(self.path).get("status"))

    def wants(self, routing: Object | None) -> None:
        self._client.patch(self.path, {"spec": {"routing": routing}})

    def answers(self, **conditions: str) -> None:
        """As a Gateway's controller does."""
        live = wait_for("a route", lambda: self._client.find(self.route), SECONDS)
        told = [
            {
                "type": kind,
                "status": status,
                "reason": "Because",
                "message": "of this",
                "observedGeneration": live["metadata"]["generation"],
                "lastTransitionTime": "2026-01-02T03:04:05Z",
            }
            for kind, status in conditions.items()
        ]
        parent = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "public"}
        entry = {"parentRef": parent, "controllerName": "example.com/x", "conditions": told}
        self._client.patch(f"{self.route}/status", {"status": {"parents": [entry]}})


def test_crds_that_come_go_and_come_back(
    client: Client, namespace: str, allowed: RouteApis, operator: Operator
) -> None:
    service = Service(client, namespace, **POOL)
    told = service.says("MissingCRDs")
    assert told["status"] == "False"
    assert ROUTE_CRD in told["message"] and POOL_CRD in told["message"]
    deployment = path_of("apps/v1", "Deployment", namespace, "a")
    assert client.find(deployment) is not None
    pid = operator.pid

    allowed.install()
    assert service.says("AwaitingGateway")["status"] == "Unknown"
    route, pool = client.get(service.route), client.get(service.pool)
    for each in (route, pool):
        (owner,) = each["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"]) == ("InferenceService", "a")
    (backend,) = route["spec"]["rules"][0]["backendRefs"]
    assert (backend["kind"], backend["name"]) == ("InferencePool", "a")
    assert pool["spec"]["endpointPickerRef"]["name"] == "picker"

    service.answers(Accepted="True", ResolvedRefs="False")
    assert "Because: of this" in service.says("RefsNotResolved")["message"]
    service.answers(Accepted="True", ResolvedRefs="True")
    assert service.says("Routed")["status"] == "True"

    allowed.remove()
    service.says("MissingCRDs")
    allowed.install()
    service.says("AwaitingGateway")
    operator.check()
    assert operator.pid == pid

    uid = client.get(service.route)["metadata"]["uid"]
    client.delete(service.route)  # the watch is there again, too

    def again() -> bool:
        found = client.find(service.route)
        return found is not None and found["metadata"]["uid"] != uid

    wait_for("a new route", again, SECONDS)


def test_a_pool_without_its_api_leaves_the_route_alone(
    client: Client, namespace: str, allowed: RouteApis
) -> None:
    allowed.install(ROUTE_CRD)
    service = Service(client, namespace, **ROUTE)
    service.says("AwaitingGateway")
    service.wants(POOL)
    message = service.says("MissingCRDs")["message"]
    assert POOL_CRD in message and ROUTE_CRD not in message
    (backend,) = client.get(service.route)["spec"]["rules"][0]["backendRefs"]
    assert (backend["kind"], backend["port"]) == ("Service", 80)


def test_what_is_not_wanted_any_more_goes(
    client: Client, namespace: str, allowed: RouteApis
) -> None:
    allowed.install()
    service = Service(client, namespace, **POOL)
    service.says("AwaitingGateway")
    service.wants({**POOL, "inferencePool": None})
    wait_for("no pool", lambda: client.find(service.pool) is None, SECONDS)
    (backend,) = client.get(service.route)["spec"]["rules"][0]["backendRefs"]
    assert backend["kind"] == "Service"
    service.wants(None)
    wait_for("no route", lambda: client.find(service.route) is None, SECONDS)

    def silent() -> bool:
        return not condition(client.get(service.path), "RoutingReady")

    wait_for("no condition", silent, SECONDS)


@pytest.mark.parametrize(
    ("kind", "edit"),
    [
        ("route", {"spec": {"hostnames": ["theirs.example.com"]}}),
        ("pool", {"spec": {"targetPorts": [{"number": 1}]}}),
    ],
    ids=["route", "pool"],
)
def test_edits_and_deletions_by_hand_come_back(
    client: Client,
    namespace: str,
    allowed: RouteApis,
    operator: Operator,
    kind: str,
    edit: Object,
) -> None:
    allowed.install()
    service = Service(client, namespace, **POOL)
    service.says("AwaitingGateway")
    # A pass that read before an edit sets it back without a word of whose it was.
    wait_for("rest", lambda: operator.requests_in(0.5) == 0, SECONDS)
    path = getattr(service, kind)
    before = client.get(path)
    client.patch(f"{path}?{BY_HAND}", edit)
    wait_for("ours again", lambda: client.get(path)["spec"] == before["spec"], SECONDS)

    def told() -> list[str]:
        events = client.get(path_of("v1", "Event", namespace))["items"]
        return [each["message"] for each in events if each["reason"] == "ForeignChange"]

    (message,) = wait_for("an event", told)
    assert "changed by somebody; set back" in message
    client.delete(path)
    uid = before["metadata"]["uid"]

    def again() -> bool:
        found = client.find(path)
        return found is not None and found["metadata"]["uid"] != uid

    wait_for("a new one", again, SECONDS)


def test_what_somebody_else_made_is_left_alone(
    client: Client, namespace: str, allowed: RouteApis
) -> None:
    allowed.install()
    theirs = {
        "apiVersion": GATEWAY_API,
        "kind": "HTTPRoute",
        "metadata": {"name": "a", "namespace": namespace},
        "spec": {"hostnames": ["theirs.example.com"]},
    }
    client.create(path_of(GATEWAY_API, "HTTPRoute", namespace), theirs)
    service = Service(client, namespace, **ROUTE)
    assert "HTTPRoute a" in service.says("NameConflict")["message"]
    assert client.get(service.route)["spec"]["hostnames"] == ["theirs.example.com"]
    client.delete(service.route)
    service.says("AwaitingGateway")


def test_missing_rights_are_told_and_given(
    client: Client, namespace: str, operator: Operator, route_apis: RouteApis
) -> None:
    service = Service(client, namespace, **ROUTE)
    service.says("MissingCRDs")  # also to an operator that may not look at them
    route_apis.install()
    message = service.says("Forbidden")["message"]
    assert "routing.enabled" in message and 'cannot get resource "httproutes"' in message
    route_apis.allow()
    service.says("AwaitingGateway")
    operator.check()
