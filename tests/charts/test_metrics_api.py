"""The metrics API's part of the chart: on by default, an installation of its own."""

from __future__ import annotations

from typing import Any

import yaml
from tests.charts.test_chart import CHART, template

RIGHTS = list(yaml.safe_load_all((CHART / "files" / "rbac-metrics-api.yaml").read_text("utf-8")))


def added(*arguments: str, release: str = "octavo") -> list[dict[str, Any]]:
    """The objects that are there because of it."""
    without, found = (
        [
            each
            for kind in template(*arguments, metrics=metrics, release=release).values()
            for each in kind
        ]
        for metrics in (False, True)
    )
    assert all(each in found for each in without)  # nothing else differs
    return [each for each in found if each not in without]


def named(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (one,) = [each for each in objects if each["kind"] == kind]
    return one


def test_its_rights_are_the_tested_ones() -> None:
    made = [each for each in added() if "rbac" in each["apiVersion"]]
    assert len(made) == 5
    for each in made:
        (tested,) = [
            other
            for other in RIGHTS
            if (other["kind"], other["metadata"].get("namespace"))
            == (each["kind"], each["metadata"].get("namespace"))
        ]
        for key in ("rules", "roleRef", "subjects"):
            assert each.get(key) == tested.get(key)


def test_two_replicas_that_are_drained_one_by_one() -> None:
    made = added()
    deployment = named(made, "Deployment")
    assert deployment["spec"]["replicas"] == 2
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for kind, key in (("Service", "selector"), ("PodDisruptionBudget", "selector")):
        selector = named(made, kind)["spec"][key]
        assert selector.get("matchLabels", selector).items() <= labels.items()
    operators = template()["Deployment"][0]["spec"]["selector"]["matchLabels"]
    assert not operators.items() <= labels.items()
    one = added("--set=metricsApi.replicas=1")
    assert not [each for each in one if each["kind"] == "PodDisruptionBudget"]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"]


def test_all_names_follow_the_releases() -> None:
    made = added("--set=gpuResource=amd.com/gpu", release="second")
    assert {each["metadata"]["name"] for each in made} == {"second-octavo-metrics-api"}
    container = named(made, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert "--service=second-octavo-metrics-api" in container["args"]
    assert "--secret=second-octavo-metrics-api" in container["args"]
    assert "--gpu-resource=amd.com/gpu" in container["args"]
    (role,) = [each for each in made if each["kind"] == "Role"]
    assert ["second-octavo-metrics-api"] in [each.get("resourceNames") for each in role["rules"]]


def test_an_installation_of_some_namespaces_has_none() -> None:
    assert added("--set=watchNamespaces={a,b}") == []
