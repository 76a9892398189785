"""The platform's pod defaults: what a file may say, what wins; a change of it rolls nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from tests.operator.memory_cluster import MemoryCluster
from tests.operator.services import MANIFESTS, manifest, service

from octavo_operator import names
from octavo_operator.installation import Installation
from octavo_operator.main import command
from octavo_operator.manifests import read_services
from octavo_operator.pod_defaults import PodDefaults, UnreadableDefaults, read_pod_defaults
from octavo_operator.render import render
from octavo_operator.render_command import command as render_command
from octavo_operator.spec import InferenceService, parse

QUEUE = "kueue.x-k8s.io/queue-name"
WHOLE: dict[str, Any] = {
    "labels": {"cost-centre": "7"},
    "annotations": {"example.com/a": "b"},
    "inheritLabels": [QUEUE],
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "llm"}],
    "imagePullSecrets": [{"name": "pull"}],
    "runtimeClassName": "nvidia",
    "priorityClassName": "serving",
    "env": [
        {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
        {"name": "ZONE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ],
    "caBundle": {"configMap": "company-ca"},
}


def read(folder: Path, text: str) -> PodDefaults:
    path = folder / "defaults.yaml"
    path.write_text(text, encoding="utf-8")
    return read_pod_defaults(path)


def template(defaults: dict[str, Any], one: InferenceService | None = None) -> dict[str, Any]:
    installation = Installation(defaults=PodDefaults.model_validate(defaults))
    deployment = render(one or service(), installation=installation)[0]
    found: dict[str, Any] = deployment["spec"]["template"]
    return found


def env_of(pod: dict[str, Any]) -> dict[str, Any]:
    variables = pod["spec"]["containers"][0]["env"]
    assert len({each["name"] for each in variables}) == len(variables)
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in variables}


def test_all_of_it_reaches_the_pods(tmp_path: Path) -> None:
    defaults = read(tmp_path, yaml.safe_dump(WHOLE))
    one = manifest()
    one["metadata"]["labels"] = {QUEUE: "search", "other": "x"}
    found = template(WHOLE, parse(one))
    assert defaults == PodDefaults.model_validate(WHOLE)
    spec, labels = found["spec"], found["metadata"]["labels"]
    for key in ("nodeSelector", "imagePullSecrets", "runtimeClassName", "priorityClassName"):
        assert spec[key] == WHOLE[key]
    assert WHOLE["tolerations"][0] in spec["tolerations"] and len(spec["tolerations"]) == 2
    assert labels == {**names.labels("tiny"), "cost-centre": "7", QUEUE: "search"}
    assert found["metadata"]["annotations"]["example.com/a"] == "b"
    variables = env_of(found)
    assert variables["HTTPS_PROXY"] == "http://proxy:3128"
    assert variables["ZONE"] == WHOLE["env"][1]["valueFrom"]
    assert (
        variables["SSL_CERT_FILE"] == variables["REQUESTS_CA_BUNDLE"] == "/etc/octavo/ca/bundle.crt"
    )
    (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "octavo-ca-bundle"]
    assert (mount["mountPath"], mount["readOnly"]) == ("/etc/octavo/ca", True)
    (volume,) = [each for each in spec["volumes"] if each["name"] == "octavo-ca-bundle"]
    items = [{"key": "ca.crt", "path": "bundle.crt"}]
    assert volume["configMap"] == {"name": "company-ca", "items": items}


def test_what_fetches_the_model_goes_the_same_way() -> None:
    spec = template(WHOLE)["spec"]
    (fetch,) = spec["initContainers"]
    (server,) = spec["containers"]
    assert fetch["env"] == server["env"]
    assert "/etc/octavo/ca" in [each["mountPath"] for each in fetch["volumeMounts"]]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_file_that_says_nothing_changes_nothing(path: Path, tmp_path: Path) -> None:
    installation = Installation(defaults=read(tmp_path, "# nothing yet\n"))
    for one in read_services([str(path)]):
        assert json.dumps(render(one, installation=installation)) == json.dumps(render(one))


def test_the_manifest_wins() -> None:
    spec = {
        "nodeSelector": {"pool": "cpu"},
        "runtimeClassName": "kata",
        "priorityClassName": None,
        "imagePullSecrets": [{"name": "own"}],
    }
    meta = {"labels": {"cost-centre": "8"}, "annotations": {"example.com/a": "c"}}
    env = [{"name": "HTTPS_PROXY", "value": "http://other:1"}, {"name": "ZONE", "value": "z"}]
    one = service(podTemplate={"metadata": meta, "spec": spec}, engine={"env": env})
    found = template(WHOLE, one)
    assert found["spec"]["nodeSelector"] == {"pool": "cpu"}
    assert found["spec"]["runtimeClassName"] == "kata"
    assert "priorityClassName" not in found["spec"]
    assert found["spec"]["imagePullSecrets"] == [{"name": "pull"}, {"name": "own"}]
    assert found["metadata"]["labels"]["cost-centre"] == "8"
    assert found["metadata"]["annotations"]["example.com/a"] == "c"
    assert env_of(found)["HTTPS_PROXY"] == "http://other:1"
    assert env_of(found)["ZONE"] == "z"


def test_secrets_of_the_manifest_are_not_the_platforms_to_give() -> None:
    given = [{"name": name, "value": "x"} for name in ("HF_TOKEN", "OCTAVO_API_KEY", "HF_HOME")]
    one = service(model={"secretRef": {"name": "hub"}}, apiKeySecretRef={"name": "key"})
    variables = env_of(template({"env": given}, one))
    assert variables["HF_TOKEN"]["secretKeyRef"]["name"] == "hub"
    assert variables["OCTAVO_API_KEY"]["secretKeyRef"]["name"] == "key"
    assert variables["HF_HOME"] == "x"


def test_our_labels_stay() -> None:
    found = template({"labels": {names.SERVICE_LABEL: "x"}, "inheritLabels": [names.SERVICE_LABEL]})
    assert found["metadata"]["labels"] == names.labels("tiny")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", "not YAML"),
        ("- a", "must be an object"),
        ("nodeSelectors: {}", "nodeSelectors: unknown field"),
        ("env: [{name: A, value: 1}]", "env[0].value: Input should be a valid string"),
        ("env: [{name: A, value: b, valueFrom: {}}]", "env[0]: give value or valueFrom, not both"),
        ("env: [{name: A}, {name: A}]", "env has A twice"),
        ("imagePullSecrets: [pull]", "imagePullSecrets[0]"),
        ("tolerations: [{kee: a}]", "tolerations[0].kee: unknown field"),
        ("caBundle: {key: a}", "caBundle.configMap: Field required"),
        ("runtimeClassName: Nvidia", "runtimeClassName"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UnreadableDefaults) as error:
        read(tmp_path, text)
    assert problem in str(error.value) and "\n" not in str(error.value)
    assert str(tmp_path / "defaults.yaml") in str(error.value)
    for program, more in ((command, []), (render_command, ["-f", str(MANIFESTS[0])])):
        arguments = [f"--pod-defaults={tmp_path / 'defaults.yaml'}", *more]
        done = CliRunner().invoke(program, arguments)
        assert done.exit_code == 1
        assert problem in done.output and done.output.count("\n") == 1


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [f"--pod-defaults={tmp_path / 'none.yaml'}"])
    assert done.exit_code == 1
    assert done.output.endswith("none.yaml: No such file or directory\n")


def test_render_prints_what_the_operator_would_apply(tmp_path: Path) -> None:
    (tmp_path / "defaults.yaml").write_text("nodeSelector: {pool: a}")
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(manifest()))
    arguments = ["-f", str(tmp_path / "one.yaml"), f"--pod-defaults={tmp_path / 'defaults.yaml'}"]
    printed = CliRunner().invoke(render_command, arguments).output
    deployment = next(iter(yaml.safe_load_all(printed)))
    assert deployment["spec"]["template"]["spec"]["nodeSelector"] == {"pool": "a"}


def with_defaults(**fields: Any) -> Installation:
    return Installation(defaults=PodDefaults.model_validate(fields))


def test_a_change_of_them_rolls_nothing() -> None:
    cluster = MemoryCluster()
    cluster.pass_over()
    before = cluster.deployment
    cluster.installation = with_defaults(**WHOLE)
    cluster.pass_over()
    assert cluster.deployment["spec"] == before["spec"]
    kept, rendered = cluster.deployment["metadata"]["annotations"], names.RENDERED_ANNOTATION
    assert kept[rendered] == before["metadata"]["annotations"][rendered]
    assert (
        kept[names.REVISION_ANNOTATION]
        == before["metadata"]["annotations"][names.REVISION_ANNOTATION]
    )
    assert kept[names.WAITING_ANNOTATION] == "the operator renders pods differently than before"
    cluster.edit(replicas=3)
    cluster.pass_over()
    assert cluster.deployment["spec"]["template"] == before["spec"]["template"]


def test_they_come_with_an_upgrade_that_is_asked_for_and_go_with_the_next() -> None:
    cluster = MemoryCluster()
    cluster.pass_over()
    first = cluster.revision
    cluster.installation = with_defaults(nodeSelector={"pool": "a"})
    cluster.edit(annotations={names.UPGRADE_ANNOTATION: "1"})
    cluster.pass_over()
    assert cluster.deployment["spec"]["template"]["spec"]["nodeSelector"] == {"pool": "a"}
    assert cluster.deployment["metadata"]["annotations"][names.WAITING_ANNOTATION] == ""
    cluster.installation = Installation()
    cluster.pass_over()
    assert cluster.deployment["spec"]["template"]["spec"]["nodeSelector"] == {"pool": "a"}
    cluster.edit(annotations={names.UPGRADE_ANNOTATION: "2"})
    cluster.pass_over()
    assert cluster.revision == first


def test_they_come_with_the_next_edit_that_rolls_anyway() -> None:
    cluster = MemoryCluster()
    cluster.pass_over()
    cluster.installation = with_defaults(nodeSelector={"pool": "a"})
    cluster.edit(engine={"maxModelLen": 1024})
    cluster.pass_over()
    assert cluster.deployment["spec"]["template"]["spec"]["nodeSelector"] == {"pool": "a"}
    settings = cluster.deployment["metadata"]["annotations"][names.RENDERED_ANNOTATION]
    assert "pool" not in settings


def test_an_inherited_label_that_changes_waits_too() -> None:
    cluster = MemoryCluster()
    cluster.live["metadata"]["labels"] = {QUEUE: "search"}
    cluster.installation = with_defaults(inheritLabels=[QUEUE])
    cluster.pass_over()
    before = cluster.deployment["spec"]["template"]
    assert before["metadata"]["labels"][QUEUE] == "search"
    cluster.live["metadata"]["labels"] = {QUEUE: "batch"}
    cluster.pass_over()
    assert cluster.deployment["spec"]["template"] == before
    cluster.edit(annotations={names.UPGRADE_ANNOTATION: "1"})
    cluster.pass_over()
    assert cluster.deployment["spec"]["template"]["metadata"]["labels"][QUEUE] == "batch"


def test_a_bad_file_does_not_put_its_values_into_the_log(tmp_path: Path) -> None:
    with pytest.raises(UnreadableDefaults) as error:
        read(tmp_path, 'env: [{name: HTTPS_PROXY, value: "http://u:hunter2@proxy:3128}]')
    with pytest.raises(UnreadableDefaults) as other:
        read(tmp_path, "env:\n- {name: P, value: http://u:hunter2@proxy, }}\n")
    assert "hunter2" not in str(error.value) + str(other.value)


@pytest.mark.parametrize("value", ["2026-02-30", "2026-13-01"])
def test_a_date_that_is_none_is_told_in_a_line(tmp_path: Path, value: str) -> None:
    with pytest.raises(UnreadableDefaults):
        read(tmp_path, f"annotations: {{example.com/since: {value}}}")


def test_the_ca_bundle_stays_beside_a_volume_of_the_manifests_of_that_name() -> None:
    mine = {"name": "ca-bundle", "configMap": {"name": "mine"}}
    mount = {"name": "ca-bundle", "mountPath": "/mine"}
    own = service(
        podTemplate={
            "spec": {
                "volumes": [mine],
                "containers": [{"name": "octavo", "volumeMounts": [mount]}],
            }
        }
    )
    made = template({"caBundle": {"configMap": "company-ca"}}, own)["spec"]
    mounts = {each["mountPath"]: each["name"] for each in made["containers"][0]["volumeMounts"]}
    volumes = {each["name"]: each for each in made["volumes"]}
    env = {each["name"]: each.get("value", "") for each in made["containers"][0]["env"]}
    assert env["SSL_CERT_FILE"].startswith("/etc/octavo/ca/")
    assert volumes[mounts["/etc/octavo/ca"]]["configMap"]["name"] == "company-ca"
