"""A service's HTTPRoute and InferencePool over several passes."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.memory_cluster import MemoryCluster

from octavo_operator import names
from octavo_operator.kube import KubeError

GATEWAYS = [{"name": "public"}]
ROUTE = {"gateways": GATEWAYS}
POOL = {**ROUTE, "inferencePool": {"endpointPicker": {"name": "picker"}}}


def extras(cluster: MemoryCluster) -> str:
    annotations = cluster.deployment["metadata"]["annotations"]
    return str(annotations.get(names.EXTRAS_ANNOTATION, ""))


def routing(cluster: MemoryCluster) -> tuple[str, str, str]:
    found = cluster.pass_over()["RoutingReady"]
    return found["status"], found["reason"], found["message"]


def answered(cluster: MemoryCluster) -> None:
    told = [{"type": each, "status": "True"} for each in ("Accepted", "ResolvedRefs")]
    parents = [{"parentRef": {"name": "public"}, "conditions": told}]
    cluster.objects["HTTPRoute"]["status"] = {"parents": parents}


def backend(cluster: MemoryCluster) -> str:
    rule = cluster.objects["HTTPRoute"]["spec"]["rules"][0]
    return str(rule["backendRefs"][0]["kind"])


def test_a_service_without_asks_for_nothing_more() -> None:
    cluster = MemoryCluster()
    cluster.hidden = ("HTTPRoute", "InferencePool")
    assert "RoutingReady" not in cluster.pass_over()  # of a Deployment that was deleted, say
    assert "RoutingReady" not in cluster.pass_over()
    assert not {"HTTPRoute", "InferencePool"} & {*cluster.asked, *cluster.objects}
    assert extras(cluster) == ""


def test_a_route_is_made_named_and_reported() -> None:
    cluster = MemoryCluster(routing=ROUTE)
    assert routing(cluster)[:2] == ("Unknown", "AwaitingGateway")
    assert extras(cluster) == "HTTPRoute"
    (owner,) = cluster.objects["HTTPRoute"]["metadata"]["ownerReferences"]
    assert owner["uid"] == "u1"
    assert backend(cluster) == "Service"
    answered(cluster)
    assert routing(cluster)[:2] == ("True", "Routed")
    assert "InferencePool" not in cluster.asked
    assert cluster.again is None


def test_it_never_keeps_a_service_from_being_ready() -> None:
    cluster = MemoryCluster(routing=ROUTE)
    cluster.absent = ("HTTPRoute", "InferencePool")
    cluster.pass_over()
    cluster.has_pods(cluster.pod_of(ready=True))
    found = cluster.pass_over()
    assert found["Ready"]["status"] == "True"
    assert found["RoutingReady"]["status"] == "False"


def test_it_goes_when_it_is_not_wanted_any_more() -> None:
    cluster = MemoryCluster(routing=POOL)
    cluster.pass_over()
    assert extras(cluster) == "HTTPRoute,InferencePool"
    cluster.edit(routing=ROUTE)
    cluster.pass_over()
    assert "InferencePool" not in cluster.objects and backend(cluster) == "Service"
    assert extras(cluster) == "HTTPRoute,InferencePool"  # it was there when that was written
    cluster.pass_over()
    assert extras(cluster) == "HTTPRoute"
    cluster.edit(routing=None)
    assert "RoutingReady" not in cluster.pass_over()
    assert "HTTPRoute" not in cluster.objects
    cluster.pass_over()
    assert extras(cluster) == ""


def test_pods_stay_as_they_are() -> None:
    cluster = MemoryCluster()
    cluster.pass_over()
    before = cluster.revision
    cluster.edit(routing=POOL)
    cluster.pass_over()
    assert cluster.revision == before


@pytest.mark.parametrize("hidden", [(), ("HTTPRoute", "InferencePool")], ids=["read", "forbidden"])
def test_missing_crds_are_named_and_found_later(hidden: tuple[str, ...]) -> None:
    """Whoever lacks the rights, too, is told of the CRDs first."""
    cluster = MemoryCluster(routing=POOL)
    cluster.absent, cluster.hidden = ("HTTPRoute", "InferencePool"), hidden
    status, reason, message = routing(cluster)
    assert (status, reason) == ("False", "MissingCRDs")
    assert "inferencepools.inference.networking.k8s.io and" in message
    assert "httproutes.gateway.networking.k8s.io" in message
    assert cluster.again is not None
    cluster.absent, cluster.hidden = ("InferencePool",), ()
    status, reason, message = routing(cluster)
    assert reason == "MissingCRDs" and "httproutes" not in message
    assert "HTTPRoute" not in cluster.objects  # it would lead nowhere
    cluster.absent = ()
    assert routing(cluster)[1] == "AwaitingGateway"
    assert cluster.again is None


def test_a_pool_that_cannot_be_made_leaves_the_route_at_the_service() -> None:
    cluster = MemoryCluster(routing=ROUTE)
    cluster.pass_over()
    cluster.absent = ("InferencePool",)
    cluster.edit(routing=POOL)
    assert routing(cluster)[1] == "MissingCRDs"
    assert backend(cluster) == "Service"


def test_uninstalled_crds_take_the_objects_along() -> None:
    cluster = MemoryCluster(routing=ROUTE)
    cluster.pass_over()
    cluster.absent = ("HTTPRoute",)
    del cluster.objects["HTTPRoute"]
    assert routing(cluster)[1] == "MissingCRDs"
    cluster.edit(routing=None)
    assert "RoutingReady" not in cluster.pass_over()
    assert extras(cluster) == ""


@pytest.mark.parametrize("right", ["hidden", "refused"])
def test_missing_rights_are_told(right: str) -> None:
    cluster = MemoryCluster(routing=ROUTE)
    setattr(cluster, right, ("HTTPRoute",))
    status, reason, message = routing(cluster)
    assert (status, reason) == ("False", "Forbidden")
    assert "routing.enabled" in message and "HTTPRoute" in message
    assert cluster.deployment and cluster.again is not None


@pytest.mark.parametrize("right", ["hidden", "refused"])
def test_what_cannot_be_deleted_is_not_forgotten(right: str) -> None:
    cluster = MemoryCluster(routing=ROUTE)
    cluster.pass_over()
    setattr(cluster, right, ("HTTPRoute",))
    cluster.edit(routing=None)
    for _ in range(2):
        status, reason, message = routing(cluster)
        assert (status, reason) == ("False", "Forbidden") and "not wanted" in message
        assert extras(cluster) == "HTTPRoute"
    setattr(cluster, right, ())
    assert "RoutingReady" not in cluster.pass_over()
    assert "HTTPRoute" not in cluster.objects


class Refusing(MemoryCluster):
    """Answers an apply of an HTTPRoute with this code."""

    code = 422

    async def apply(self, manifest: dict[str, Any]) -> dict[str, Any]:
        if manifest["kind"] == "HTTPRoute":
            raise KubeError(self.code, "", "spec.parentRefs is odd")
        return await super().apply(manifest)


@pytest.mark.parametrize("code", [422, 500])
def test_what_the_api_server_says_is_passed_on(code: int) -> None:
    cluster = Refusing(routing=ROUTE)
    cluster.code = code
    status, reason, message = routing(cluster)
    assert (status, reason) == ("False", "RouteRefused") and "is odd" in message
    assert cluster.deployment and cluster.again is not None


def test_one_that_was_replaced_meanwhile_is_looked_at_again() -> None:
    cluster = Refusing(routing=ROUTE)
    cluster.code = 409
    with pytest.raises(KubeError):
        cluster.pass_over()


def test_what_somebody_else_made_is_left_alone() -> None:
    theirs: dict[str, Any] = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "tiny", "namespace": "ns", "uid": "theirs"},
        "spec": {},
    }
    cluster = MemoryCluster(routing=ROUTE)
    cluster.objects["HTTPRoute"] = theirs
    status, reason, message = routing(cluster)
    assert (status, reason) == ("False", "NameConflict") and "HTTPRoute tiny" in message
    assert cluster.objects["HTTPRoute"] == theirs and cluster.deployment
    cluster.edit(routing=None)
    cluster.pass_over()
    assert cluster.objects["HTTPRoute"] == theirs


def test_nothing_is_made_that_the_deployment_does_not_name() -> None:
    """It could be forgotten."""
    cluster = MemoryCluster(routing=ROUTE)
    cluster.refused = ("Deployment",)
    status, reason, _ = routing(cluster)
    assert (status, reason) == ("False", "Progressing")
    assert "HTTPRoute" not in cluster.objects
