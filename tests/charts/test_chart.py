"""The chart: its files, and what Helm renders of it (`make helm` fetches one)."""

from __future__ import annotations

import json
import re
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
ROUTING = {
    each["kind"]: each
    for each in yaml.safe_load_all((CHART / "files" / "rbac-routing.yaml").read_text("utf-8"))
}


def test_crds_are_copied() -> None:
    """If this fails: python tests/charts/copy_crds.py"""
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
        assert not {"deletecollection", "escalate", "impersonate"} & set(rule["verbs"])
        of_the_manifests = (["networkpolicies"], ["horizontalpodautoscalers"])
        named = bool(rule.get("resourceNames"))
        assert "delete" not in rule["verbs"] or named or rule["resources"] in of_the_manifests


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


def template(
    *arguments: str, part: str = "octavo-operator", release: str = "octavo"
) -> dict[str, list[dict[str, Any]]]:
    """By kind; of the metrics API, or of all else."""
    done = helm("template", release, str(CHART), "--namespace=octavo-system", *arguments)
    assert done.returncode == 0, done.stderr
    kinds: dict[str, list[dict[str, Any]]] = {}
    for each in yaml.safe_load_all(done.stdout):
        if each is None:
            continue
        own = each["metadata"].get("labels", {}).get("app.kubernetes.io/name")
        if (own == "octavo-metrics-api") == (part == "octavo-metrics-api"):
            kinds.setdefault(each["kind"], []).append(each)
    return kinds


def test_lint() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_cluster_wide_install_has_the_tested_rules() -> None:
    kinds = template()
    assert set(kinds) == {
        "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Deployment",
        "CustomResourceDefinition", "Pod",
    }  # fmt: skip
    assert kinds["Role"][0]["rules"] == RBAC["Role"]["rules"]
    assert kinds["RoleBinding"][0]["subjects"] == RBAC["RoleBinding"]["subjects"]
    assert kinds["ClusterRole"][0]["rules"] == RULES
    assert kinds["ClusterRoleBinding"][0]["subjects"] == RBAC["ClusterRoleBinding"]["subjects"]
    pod = kinds["Deployment"][0]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == kinds["ServiceAccount"][0]["metadata"]["name"]
    assert pod["containers"][0]["args"] == [
        "--image=octavo-server:0.1.0",
        "--gpu-resource=nvidia.com/gpu",
        "--resync-seconds=300",
        "--liveness-port=8080",
        "--metrics-port=9090",
        "--lease-namespace=octavo-system",
        "--lease-name=octavo-operator",
        "--log-format=json",
    ]
    fields = {each["name"]: each["valueFrom"] for each in pod["containers"][0]["env"]}
    assert fields == {
        "POD_NAME": {"fieldRef": {"fieldPath": "metadata.name"}},
        "POD_NAMESPACE": {"fieldRef": {"fieldPath": "metadata.namespace"}},
    }


def test_namespaced_install_has_nothing_cluster_wide() -> None:
    kinds = template("--set", "watchNamespaces={a,b}")
    found = {"ServiceAccount", "Role", "RoleBinding", "Deployment", "CustomResourceDefinition"}
    assert set(kinds) == found | {"Pod"}
    *served, leader = kinds["Role"]
    assert [each["metadata"]["namespace"] for each in served] == ["a", "b"]
    assert all(each["rules"] == RULES for each in served)
    assert leader["metadata"]["namespace"] == "octavo-system"
    arguments = kinds["Deployment"][0]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[-2:] == ["--namespace=a", "--namespace=b"]


def test_rights_for_routes_only_where_they_are_wanted() -> None:
    rules = ROUTING["ClusterRole"]["rules"]
    kinds = template("--set", "routing.enabled=true")
    assert kinds["ClusterRole"][0]["rules"] == RULES + rules
    kinds = template("--set", "routing.enabled=true", "--set", "watchNamespaces={a,b}")
    assert [each["rules"] for each in kinds["Role"][:2]] == [RULES + rules] * 2
    assert "ClusterRole" not in kinds
    assert {each for rule in rules for each in rule["resources"]} == {
        "httproutes",
        "inferencepools",
    }
    for kind in ("subjects", "roleRef"):
        assert kind in ROUTING["ClusterRoleBinding"]
    assert ROUTING["ClusterRoleBinding"]["subjects"] == RBAC["ClusterRoleBinding"]["subjects"]
    name = ROUTING["ClusterRole"]["metadata"]["name"]
    assert ROUTING["ClusterRoleBinding"]["roleRef"]["name"] == name


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
        "priorityClassName": "system-cluster-critical",
        "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "volumeMounts": [{"name": "ca", "mountPath": "/ca"}],
        "env": [{"name": "SSL_CERT_FILE", "value": "/ca/bundle.crt"}],
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
    for key in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity", "volumes"):
        assert pod[key] == values[key]
    assert pod["priorityClassName"] == "system-cluster-critical"
    assert pod["containers"][0]["volumeMounts"] == values["volumeMounts"]
    names = [each["name"] for each in pod["containers"][0]["env"]]
    assert names == ["POD_NAME", "POD_NAMESPACE", "SSL_CERT_FILE"]


def test_a_wrong_value_is_refused() -> None:
    done = helm("template", "octavo", str(CHART), "--set", "resyncSeconds=soon")
    assert done.returncode != 0
    assert "resyncSeconds" in done.stderr


def test_the_crd_is_upgraded_kept_or_left_out() -> None:
    (crd,) = template()["CustomResourceDefinition"]
    source = yaml.safe_load((SOURCE / "inferenceservice.yaml").read_text(encoding="utf-8"))
    assert crd["spec"] == source["spec"]
    assert crd["metadata"]["name"] == source["metadata"]["name"]
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    (gone,) = template("--set", "crds.keep=false")["CustomResourceDefinition"]
    assert "helm.sh/resource-policy" not in (gone["metadata"].get("annotations") or {})
    assert "CustomResourceDefinition" not in template("--set", "crds.install=false")


def test_two_operators_are_drained_one_by_one() -> None:
    assert "PodDisruptionBudget" not in template()
    kinds = template("--set", "replicas=2")
    assert kinds["Deployment"][0]["spec"]["replicas"] == 2
    (budget,) = kinds["PodDisruptionBudget"]
    pods = kinds["Deployment"][0]["spec"]["template"]["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= pods.items()


MONITORING = [f"--set=monitoring.{each}=true" for each in ("podMonitors", "rules", "dashboards")]


def test_monitoring_where_it_is_wanted() -> None:
    kinds = template(*MONITORING, "--set", "monitoring.labels.release=prometheus")
    operator, services = kinds["PodMonitor"]
    assert operator["metadata"]["labels"]["release"] == "prometheus"
    pod = kinds["Deployment"][0]["spec"]["template"]
    assert operator["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    ports = [each["name"] for each in pod["spec"]["containers"][0]["ports"]]
    assert operator["spec"]["podMetricsEndpoints"][0]["port"] in ports
    assert services["spec"]["namespaceSelector"] == {"any": True}
    (rule,) = kinds["PrometheusRule"]
    assert {each["name"] for each in rule["spec"]["groups"]} == {
        "octavo-services",
        "octavo-operator",
    }
    boards = [json.loads(text) for each in kinds["ConfigMap"] for text in each["data"].values()]
    assert {each["uid"] for each in boards} == {"octavo-services", "octavo-operator"}
    two = template(*MONITORING, "--set", "watchNamespaces={a,b}")["PodMonitor"][1]
    assert two["spec"]["namespaceSelector"] == {"matchNames": ["a", "b"]}


def test_dashboards_and_alerts_ask_for_metrics_that_exist() -> None:
    texts = [path.read_text(encoding="utf-8") for path in CHART.glob("files/**/*.*")]
    asked = set(re.findall(r"\b(?:vllm:|octavo_operator_)[a-z0-9_]+", "".join(texts)))
    assert len(asked) > 15
    sources = [
        ROOT / "server" / "octavo_server" / "api" / "metrics.py",
        ROOT / "operator" / "octavo_operator" / "metrics.py",
    ]
    known = set(re.findall(r'"([a-z0-9_]+)"', "".join(each.read_text() for each in sources)))
    for metric in asked:
        name = metric.removeprefix("vllm:")
        bare = re.sub(r"_(total|bucket|sum|count)$", "", name)
        short = bare.removeprefix("octavo_operator_")
        assert {name, bare, short} & known, metric
