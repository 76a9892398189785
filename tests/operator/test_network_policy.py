"""Who may reach the pods: the NetworkPolicy, its life, and what a manifest is refused for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from tests.operator.memory_cluster import MemoryCluster
from tests.operator.services import manifest, service

from octavo_operator import names
from octavo_operator.installation import Installation
from octavo_operator.kube import path_of
from octavo_operator.render import ALWAYS, SOMETIMES, render
from octavo_operator.render_command import command
from octavo_operator.spec import InvalidSpec, parse

CLIENTS = {"namespaceSelector": {"matchLabels": {"team": "search"}}}
OWN = {"podSelector": {"matchLabels": {names.SERVICE_LABEL: "tiny"}}}
INSIDE = Installation(namespace="octavo-system")


def policy(*peers: dict[str, Any], installation: Installation = INSIDE) -> dict[str, Any]:
    one = service(networkPolicy={"from": list(peers)})
    found = [each for each in render(one, installation=installation) if each["kind"] not in ALWAYS]
    assert [each["kind"] for each in found] == ["NetworkPolicy"]
    return found[0]


def test_those_who_may_come_in() -> None:
    spec = policy(CLIENTS)["spec"]
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": INSIDE.namespace}}
    }
    (rule,) = spec["ingress"]
    assert rule["from"] == [operator, OWN, CLIENTS]
    assert rule["ports"] == [{"port": 8000, "protocol": "TCP"}]
    assert spec["policyTypes"] == ["Ingress"]


def test_it_selects_the_pods_of_the_service_and_no_others() -> None:
    deployment = render(service())[0]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selector = policy()["spec"]["podSelector"]["matchLabels"]
    assert selector == deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()


def test_an_operator_outside_the_cluster_has_no_namespace() -> None:
    """A selector without a word would let all namespaces in."""
    (rule,) = policy(CLIENTS, installation=Installation())["spec"]["ingress"]
    assert rule["from"] == [OWN, CLIENTS]


def test_render_prints_what_the_operator_would_apply(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(manifest(networkPolicy={"from": [CLIENTS]})))
    arguments = ["-f", str(tmp_path / "one.yaml"), f"--operator-namespace={INSIDE.namespace}"]
    printed = CliRunner().invoke(command, arguments).output
    assert list(yaml.safe_load_all(printed))[-1] == policy(CLIENTS)


def test_the_pods_are_the_same_with_it_and_without() -> None:
    assert render(service(networkPolicy={}))[0] == render(service())[0]


@pytest.mark.parametrize(
    ("peer", "path", "problem"),
    [
        ({}, ".podSelector", "a peer needs"),
        ({"podSelector": None}, ".podSelector", "a peer needs"),
        ({**CLIENTS, "ipBlock": {"cidr": "10.0.0.0/8"}}, ".ipBlock", "write two peers"),
        ({"ipBlock": {}}, ".ipBlock.cidr", "is required"),
        ({"ipBlock": {"cidr": "10.0.0.1"}}, ".ipBlock.cidr", "does not match"),
        ({"ipBlock": {"cidr": "10.0.0.0/33"}}, ".ipBlock.cidr", "a range of addresses"),
        ({"ipBlock": {"cidr": "::/0", "except": ["::/129"]}}, ".ipBlock.except[0]", "a range"),
        ({"podSelector": {"matchLabel": {"a": "b"}}}, ".podSelector.matchLabel", "unknown field"),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "NotIn"}]}},
            ".podSelector.matchExpressions[0].values",
            "In and NotIn need values",
        ),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}},
            ".podSelector.matchExpressions[0].operator",
            "not one of In",
        ),
    ],
)
def test_refused(peer: dict[str, Any], path: str, problem: str) -> None:
    with pytest.raises(InvalidSpec) as error:
        parse(manifest(networkPolicy={"from": [CLIENTS, peer]}))
    assert error.value.path == f"spec.networkPolicy.from[1]{path}"
    assert problem in error.value.problem


def test_without_it_nothing_more_is_asked() -> None:
    cluster = MemoryCluster()
    cluster.pass_over()  # there may be one of a Deployment that was deleted
    for _ in range(2):
        cluster.pass_over()
        assert sorted(cluster.asked) == sorted(ALWAYS)
    assert names.EXTRAS_ANNOTATION not in cluster.deployment["metadata"]["annotations"]


def test_it_comes_and_goes_with_the_field_and_rolls_nothing() -> None:
    cluster = MemoryCluster()
    cluster.pass_over()
    template = cluster.deployment["spec"]["template"]
    cluster.edit(networkPolicy={"from": [CLIENTS]})
    cluster.pass_over()
    made = cluster.objects["NetworkPolicy"]
    assert CLIENTS in made["spec"]["ingress"][0]["from"]
    assert made["metadata"]["ownerReferences"][0]["uid"] == "u1"
    assert cluster.deployment["metadata"]["annotations"][names.EXTRAS_ANNOTATION] == "NetworkPolicy"
    cluster.edit(networkPolicy=None)
    cluster.pass_over()
    assert "NetworkPolicy" not in cluster.objects
    cluster.pass_over()
    assert names.EXTRAS_ANNOTATION not in cluster.deployment["metadata"]["annotations"]
    cluster.pass_over()
    assert sorted(cluster.asked) == sorted(ALWAYS)
    assert cluster.deployment["spec"]["template"] == template


def test_one_of_somebody_else_is_left_alone() -> None:
    cluster = MemoryCluster()
    cluster.pass_over()
    theirs = {
        "kind": "NetworkPolicy",
        "metadata": {"name": "tiny", "namespace": "ns", "uid": "theirs"},
        "spec": {"podSelector": {}},
    }
    cluster.objects["NetworkPolicy"] = theirs
    cluster.edit(networkPolicy={})
    conditions = cluster.pass_over()
    assert conditions["WorkloadReady"]["reason"] == "NameConflict"
    cluster.edit(networkPolicy=None)
    cluster.pass_over()
    assert cluster.objects["NetworkPolicy"] == theirs


def test_a_policy_that_is_refused_is_told() -> None:
    cluster = MemoryCluster(networkPolicy={})
    cluster.refused = ("NetworkPolicy",)
    conditions = cluster.pass_over()
    assert conditions["WorkloadReady"]["reason"] == "Forbidden"
    assert "NetworkPolicy tiny" in conditions["WorkloadReady"]["message"]


def test_one_that_may_not_be_deleted_is_told_and_holds_nothing_else_up() -> None:
    cluster = MemoryCluster(networkPolicy={})
    cluster.pass_over()
    cluster.refused = ("NetworkPolicy",)
    cluster.edit(networkPolicy=None, replicas=2)
    conditions = cluster.pass_over()
    assert conditions["WorkloadReady"]["reason"] == "Forbidden"
    assert "NetworkPolicy tiny" in conditions["WorkloadReady"]["message"]
    assert cluster.deployment["spec"]["replicas"] == 2
    assert cluster.again is not None
    cluster.refused = ()
    assert cluster.pass_over()["WorkloadReady"]["reason"] != "Forbidden"
    assert "NetworkPolicy" not in cluster.objects


def test_the_client_knows_where_each_kind_is() -> None:
    for kind, version in {**ALWAYS, **SOMETIMES}.items():
        assert path_of(version, kind, "ns", "tiny").endswith("s/tiny")
