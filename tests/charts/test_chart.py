"""The chart: its files, and what Helm renders of it (`make helm` fetches one)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tests.charts.copy_crds import COPY, ROOT, SOURCE
from tests.charts.fetch_helm import helm_program

CHART = ROOT / "charts" / "octavo"
RBAC = {
    each["kind"]: each
    for each in yaml.safe_load_all((CHART / "files" / "rbac.yaml").read_text(encoding="utf-8"))
}
RULES = RBAC["ClusterRole"]["rules"]


def test_crds_are_copied() -> None:
    """If this fails: python tests/charts/copy_crds.py"""
    assert {path.name for path in COPY.iterdir()} == {path.name for path in SOURCE.iterdir()}
    for path in SOURCE.iterdir():
        assert (COPY / path.name).read_bytes() == path.read_bytes()


def test_version_is_the_distributions() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{chart["appVersion"]}"' in project


def test_values_match_their_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(values, schema)
    assert set(values) == set(schema["properties"]) - {"global"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**values, "replicaCount": 2}, schema)


def test_least_rights() -> None:
    for rule in RULES:
        words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert "*" not in words
        assert not {"secrets", "configmaps", "pods/exec"} & set(rule["resources"])
        assert not {"delete", "deletecollection", "escalate", "impersonate"} & set(rule["verbs"])


def test_the_rbac_file_is_whole() -> None:
    account = RBAC["ServiceAccount"]["metadata"]
    (subject,) = RBAC["ClusterRoleBinding"]["subjects"]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
    assert RBAC["ClusterRoleBinding"]["roleRef"]["name"] == RBAC["ClusterRole"]["metadata"]["name"]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = helm_program()
    if program is None:
        pytest.skip("no helm (`make helm`): the chart's templates are not rendered")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def template(*arguments: str) -> dict[str, list[dict[str, Any]]]:
    done = helm("template", "octavo", str(CHART), "--namespace=octavo-system", *arguments)
    assert done.returncode == 0, done.stderr
    kinds: dict[str, list[dict[str, Any]]] = {}
    for each in yaml.safe_load_all(done.stdout):
        if each is not None:
            kinds.setdefault(each["kind"], []).append(each)
    return kinds


def test_lint() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_cluster_wide_install_has_the_tested_rules() -> None:
    kinds = template()
    assert set(kinds) == {
        "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Deployment",
    }  # fmt: skip
    assert kinds["Role"][0]["rules"] == RBAC["Role"]["rules"]
    assert kinds["RoleBinding"][0]["subjects"] == RBAC["RoleBinding"]["subjects"]
    assert kinds["ClusterRole"][0]["rules"] == RULES
    assert kinds["ClusterRoleBinding"][0]["subjects"] == RBAC["ClusterRoleBinding"]["subjects"]
    pod = kinds["Deployment"][0]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == kinds["ServiceAccount"][0]["metadata"]["name"]
    assert pod["containers"][0]["args"] == [
        "--image=octavo-server:0.1.0",
        "--resync-seconds=300",
        "--liveness-port=8080",
        "--metrics-port=9090",
        "--lease-namespace=octavo-system",
        "--lease-name=octavo-operator",
        "--log-format=json",
    ]
    assert pod["containers"][0]["env"][0]["name"] == "POD_NAME"


def test_namespaced_install_has_nothing_cluster_wide() -> None:
    kinds = template("--set", "watchNamespaces={a,b}")
    assert set(kinds) == {"ServiceAccount", "Role", "RoleBinding", "Deployment"}
    *served, leader = kinds["Role"]
    assert [each["metadata"]["namespace"] for each in served] == ["a", "b"]
    assert all(each["rules"] == RULES for each in served)
    assert leader["metadata"]["namespace"] == "octavo-system"
    arguments = kinds["Deployment"][0]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[-2:] == ["--namespace=a", "--namespace=b"]


def test_every_value_reaches_the_pod(tmp_path: Path) -> None:
    values = {
        "image": {"repository": "host/op", "tag": "9"},
        "serverImage": "host/server:8",
        "imagePullSecrets": [{"name": "pull"}],
        "serviceAccount": {"annotations": {"a": "b"}},
        "podAnnotations": {"c": "d"},
        "podLabels": {"e": "f"},
        "nodeSelector": {"g": "h"},
        "tolerations": [{"key": "i"}],
        "affinity": {"nodeAffinity": {}},
    }
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    kinds = template("--values", str(path))
    assert kinds["ServiceAccount"][0]["metadata"]["annotations"] == {"a": "b"}
    made = kinds["Deployment"][0]["spec"]["template"]
    assert made["metadata"]["annotations"] == {"c": "d"}
    assert made["metadata"]["labels"]["e"] == "f"
    pod = made["spec"]
    assert pod["containers"][0]["image"] == "host/op:9"
    assert "--image=host/server:8" in pod["containers"][0]["args"]
    for key in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity"):
        assert pod[key] == values[key]


def test_a_wrong_value_is_refused() -> None:
    done = helm("template", "octavo", str(CHART), "--set", "resyncSeconds=soon")
    assert done.returncode != 0
    assert "resyncSeconds" in done.stderr
