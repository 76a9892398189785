"""The chart's metrics API: a Deployment of its own, with the rights that were tested."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from tests.charts.test_chart import CHART, template

from octavo_operator.metrics_api.command import command

FILE = CHART / "files" / "rbac-metrics-api.yaml"
TESTED = list(yaml.safe_load_all(FILE.read_text(encoding="utf-8")))
NAMESPACED = ["--set", "watchNamespaces={a,b}"]
WIDE = ["--set", "metricsApi.clusterWide=true"]


def render(*arguments: str) -> dict[str, list[dict[str, Any]]]:
    return template(*arguments, part="octavo-metrics-api")


def test_it_has_the_tested_rights() -> None:
    made = render()
    for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"):
        wanted = [each for each in TESTED if each["kind"] == kind]
        for each in (*wanted, *made[kind]):
            each["metadata"].pop("labels", None)

        def place(each: dict[str, Any]) -> tuple[str, str]:
            return each["metadata"].get("namespace", ""), each["metadata"]["name"]

        assert sorted(made[kind], key=place) == sorted(wanted, key=place), kind


def test_least_rights() -> None:
    for rule in (rule for each in TESTED for rule in each.get("rules", ())):
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        if {"get", "update", "delete"} & set(rule["verbs"]):
            assert rule["resourceNames"], rule


def test_another_release_has_rights_on_its_own() -> None:
    """Two releases share no Secret, and none may write the other's."""
    done = template(part="octavo-metrics-api", release="mine")
    (secret,) = [rule for rule in done["Role"][0]["rules"] if "resourceNames" in rule]
    assert secret["resourceNames"] == ["mine-octavo-metrics-api"]
    (owner,) = [
        rule for rule in done["ClusterRole"][0]["rules"] if rule["resources"] == ["clusterroles"]
    ]
    assert owner["resourceNames"] == [done["ClusterRole"][0]["metadata"]["name"]]


def test_two_of_them_behind_one_service() -> None:
    made = render()
    (deployment,) = made["Deployment"]
    assert deployment["spec"]["replicas"] == 2
    template_ = deployment["spec"]["template"]
    pod, labels = template_["spec"], template_["metadata"]["labels"].items()
    (container,) = pod["containers"]
    assert container["command"] == ["octavo", "metrics-api"]
    options = {each for option in command.params for each in option.opts}
    flags = dict(each.split("=") for each in container["args"])
    assert set(flags) <= options
    name = made["Service"][0]["metadata"]["name"]
    assert flags["--service"] == name == made["ClusterRole"][0]["metadata"]["name"]
    assert pod["serviceAccountName"] == made["ServiceAccount"][0]["metadata"]["name"]
    ports = {each["name"]: str(each["containerPort"]) for each in container["ports"]}
    assert ports == {"https": flags["--port"], "health": flags["--liveness-port"]}
    (port,) = made["Service"][0]["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (443, "https")
    selectors = [
        made["Service"][0]["spec"]["selector"],
        deployment["spec"]["selector"]["matchLabels"],
        made["PodDisruptionBudget"][0]["spec"]["selector"]["matchLabels"],
    ]
    assert all(each.items() <= labels for each in selectors)
    # The operator's own Deployment and its do not select each other's pods.
    (other,) = template()["Deployment"]
    assert not other["spec"]["selector"]["matchLabels"].items() <= labels
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert "PodDisruptionBudget" not in render("--set", "metricsApi.replicas=1")


@pytest.mark.parametrize("options", [["--set", "metricsApi.enabled=false"], NAMESPACED])
def test_none_where_none_is_wanted(options: list[str]) -> None:
    assert render(*options) == {}


def test_of_some_namespaces_it_reads_no_others() -> None:
    made = render(*NAMESPACED, *WIDE)
    wide = [each for rule in made["ClusterRole"][0]["rules"] for each in rule["resources"]]
    assert set(wide) == {"subjectaccessreviews", "apiservices", "clusterroles"}
    readers = {
        each["metadata"]["namespace"]: each["rules"]
        for each in made["Role"]
        if each["metadata"]["name"].endswith("-reader")
    }
    assert set(readers) == {"a", "b"}
    for rules in readers.values():
        assert {each for rule in rules for each in rule["resources"]} == {
            "inferenceservices", "pods",
        }  # fmt: skip
    arguments = made["Deployment"][0]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[-2:] == ["--namespace=a", "--namespace=b"]
