"""What a platform team sets for all: pod defaults, as Helm renders them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from tests.charts.test_chart import CHART, helm, template
from tests.operator.services import MANIFESTS

from octavo_operator.main import command
from octavo_operator.pod_defaults import PodDefaults, read_pod_defaults
from octavo_operator.render_command import command as render

DEFAULTS: dict[str, Any] = {
    "labels": {"cost-centre": "7"},
    "annotations": {"example.com/a": "b"},
    "inheritLabels": ["kueue.x-k8s.io/queue-name"],
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "dedicated", "operator": "Exists", "tolerationSeconds": 7}],
    "imagePullSecrets": [{"name": "pull"}],
    "runtimeClassName": "nvidia",
    "priorityClassName": "serving",
    "env": [{"name": "NO_PROXY", "value": "10.0.0.0/8,.svc"}],
    "caBundle": {"configMap": "company-ca", "key": "all.pem"},
}
MODES = [[], ["--set=watchNamespaces={a,b}"]]


def values(folder: Path, **found: Any) -> str:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(found), encoding="utf-8")
    return f"--values={path}"


def pod_of(kinds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    found: dict[str, Any] = kinds["Deployment"][0]["spec"]["template"]
    return found


@pytest.mark.parametrize("mode", MODES, ids=["everywhere", "namespaced"])
def test_pod_defaults_are_a_file_that_the_operator_reads(mode: list[str], tmp_path: Path) -> None:
    kinds = template(values(tmp_path, podDefaults=DEFAULTS), *mode)
    (config,) = kinds["ConfigMap"]
    ((name, text),) = config["data"].items()
    pod = pod_of(kinds)["spec"]
    container = pod["containers"][0]
    (volume,) = pod["volumes"]
    (mount,) = container["volumeMounts"]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    assert (mount["name"], mount["readOnly"]) == (volume["name"], True)
    (option,) = [each for each in container["args"] if each.startswith("--pod-defaults=")]
    assert option == f"--pod-defaults={mount['mountPath']}/{name}"
    assert "--pod-defaults" in [flag for each in command.params for flag in each.opts]
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_pod_defaults(tmp_path / name) == PodDefaults.model_validate(DEFAULTS)


def test_the_charts_schema_knows_what_the_operator_reads() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text(encoding="utf-8"))
    known = schema["properties"]["podDefaults"]["properties"]
    assert set(known) == {each.alias for each in PodDefaults.model_fields.values()} == set(DEFAULTS)


def test_none_leave_the_operator_as_it_was() -> None:
    kinds = template()
    assert "ConfigMap" not in kinds
    pod = pod_of(kinds)
    assert "volumes" not in pod["spec"] and "annotations" not in pod["metadata"]
    assert "pod-defaults" not in str(pod)


def test_a_change_of_them_starts_the_operator_anew(tmp_path: Path) -> None:
    def annotations(**defaults: Any) -> dict[str, str]:
        found = template(values(tmp_path, podDefaults=defaults, podAnnotations={"c": "d"}))
        annotated: dict[str, str] = pod_of(found)["metadata"]["annotations"]
        return annotated

    one, other = annotations(labels={"a": "b"}), annotations(labels={"a": "c"})
    assert one != other and one["c"] == other["c"] == "d"
    assert one == annotations(labels={"a": "b"})


def test_volumes_of_both_are_there(tmp_path: Path) -> None:
    extra = {
        "volumes": [{"name": "x", "emptyDir": {}}],
        "volumeMounts": [{"name": "x", "mountPath": "/x"}],
    }
    pod = pod_of(template(values(tmp_path, podDefaults=DEFAULTS, **extra)))["spec"]
    assert {each["name"] for each in pod["volumes"]} == {"x", "pod-defaults"}
    mounts = pod["containers"][0]["volumeMounts"]
    assert {each["name"] for each in mounts} == {"x", "pod-defaults"}


@pytest.mark.parametrize("mode", MODES, ids=["everywhere", "namespaced"])
def test_another_gpu(mode: list[str]) -> None:
    arguments = pod_of(template("--set", "gpuResource=amd.com/gpu", *mode))["spec"]["containers"][0]
    assert "--gpu-resource=amd.com/gpu" in arguments["args"]


@pytest.mark.parametrize("mode", MODES, ids=["everywhere", "namespaced"])
def test_one_registry_is_before_both_images(mode: list[str]) -> None:
    def images(*options: str) -> list[str]:
        kinds = template(*options, *mode)
        container = pod_of(kinds)["spec"]["containers"][0]
        (server,) = [each for each in container["args"] if each.startswith("--image=")]
        (check,) = kinds["Pod"][0]["spec"]["containers"]
        assert check["image"] == container["image"]
        return [container["image"], server.removeprefix("--image=")]

    assert images() == ["octavo-operator:0.1.0", "octavo-server:0.1.0"]
    registry = "--set=image.registry=registry.example.com:5000/team"
    assert images(registry) == [
        "registry.example.com:5000/team/octavo-operator:0.1.0",
        "registry.example.com:5000/team/octavo-server:0.1.0",
    ]
    named = images(registry, "--set=serverImage=own@sha256:ab", "--set=image.tag=v2")
    assert named == [
        "registry.example.com:5000/team/octavo-operator:v2",
        "registry.example.com:5000/team/own@sha256:ab",
    ]


def test_a_registry_ends_without_a_slash() -> None:
    done = helm("template", "octavo", str(CHART), "--set=image.registry=registry.example.com/")
    assert done.returncode != 0 and "registry" in done.stderr


@pytest.mark.parametrize("mode", MODES, ids=["everywhere", "namespaced"])
def test_the_operators_way_to_the_hub(mode: list[str], tmp_path: Path) -> None:
    found = values(
        tmp_path,
        proxy={"httpsProxy": "http://proxy.example.com:3128", "noProxy": ".svc,10.0.0.0/8"},
        caBundle={"configMap": "company-ca", "key": "all.pem"},
        env=[{"name": "HF_ENDPOINT", "value": "https://hub.example.com"}],
        podDefaults=DEFAULTS,
    )
    pod = pod_of(template(found, *mode))["spec"]
    container = pod["containers"][0]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert len(variables) == len(container["env"])
    assert "HTTP_PROXY" not in variables
    assert variables["HTTPS_PROXY"] == "http://proxy.example.com:3128"
    assert variables["NO_PROXY"] == ".svc,10.0.0.0/8"
    assert variables["HF_ENDPOINT"] == "https://hub.example.com"
    (volume,) = [each for each in pod["volumes"] if each["name"] == "ca-bundle"]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "ca-bundle"]
    (item,) = volume["configMap"]["items"]
    assert (volume["configMap"]["name"], item["key"]) == ("company-ca", "all.pem")
    path = f"{mount['mountPath']}/{item['path']}"
    assert variables["SSL_CERT_FILE"] == variables["REQUESTS_CA_BUNDLE"] == path


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("nvidia.com/gpu", True),
        ("amd.com/gpu", True),
        ("nvidia.com/mig-1g.10gb", True),
        ("gpu.intel.com/i915", True),
        ("cpu", False),
        ("example.com/tpu", False),
        ("gpu", False),
        ("nvidia.com/gpu x", False),
    ],
)
def test_chart_and_operator_know_the_same_gpus(name: str, good: bool) -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text(encoding="utf-8"))
    pattern = schema["properties"]["gpuResource"]["pattern"]
    assert bool(re.search(pattern, name)) == good
    done = CliRunner().invoke(render, ["-f", str(MANIFESTS[0]), f"--gpu-resource={name}"])
    assert (done.exit_code == 0) == good, done.output
    assert good or "is no GPU: write a resource such as" in done.output


def test_the_notes_say_how_defaults_come_to_pods_that_run(tmp_path: Path) -> None:
    def notes(*options: str) -> str:
        done = helm("install", "octavo", str(CHART), "--dry-run=client", *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.partition("NOTES:")[2]

    assert "kubectl get octavo" in notes() and "podDefaults" not in notes()
    said = notes(values(tmp_path, podDefaults=DEFAULTS))
    assert "annotations, caBundle, env" in said and "octavo.dev/upgrade=1" in said


@pytest.mark.parametrize(
    "wrong", [{"nodeSelectors": {}}, {"caBundle": {"key": "a"}}, {"env": [{"value": "a"}]}]
)
def test_wrong_defaults_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    done = helm("template", "octavo", str(CHART), values(tmp_path, podDefaults=wrong))
    assert done.returncode != 0 and "podDefaults" in done.stderr
