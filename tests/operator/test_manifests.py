"""Bad files: `octavo render` and `octavo up` answer with one line that names the place."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from octavo_operator.local import up as up_module
from octavo_operator.local.up import command as up
from octavo_operator.local.up import read_workloads
from octavo_operator.manifests import UnreadableManifest, read_documents
from octavo_operator.render_command import command as render

HEAD = """apiVersion: octavo.dev/v1alpha1
kind: InferenceService
metadata: {name: a}
spec:
  model: {uri: "file:///m.gguf"}
  engine: {device: cpu}
"""
OCTAVO = "  podTemplate: {spec: {containers: [{name: octavo, %s}]}}\n"
TEMPLATE = "  podTemplate: {spec: {%s}}\n"
BAD_FOR_BOTH = {
    "name is a number": HEAD.replace("{name: a}", "{name: 123}"),
    "name is null": HEAD.replace("{name: a}", "{name: null}"),
    "namespace is a list": HEAD.replace("{name: a}", "{name: a, namespace: [b]}"),
    "List without items": "kind: List\napiVersion: v1\n",
    "List of null": "kind: List\napiVersion: v1\nitems: null\n",
    "List of numbers": "kind: List\napiVersion: v1\nitems: [1]\n",
    "a date by force": HEAD.replace("name: a", "name: !!timestamp 2024-02-30"),
    "number and text as label keys": HEAD + "  podTemplate: {metadata: {labels: {1: a, b: c}}}\n",
    "text among env objects": HEAD + OCTAVO % 'env: ["A=b", {name: B, value: c}]',
    "null among volumes": HEAD + TEMPLATE % "volumes: [null, {name: x}]",
    "newline after a quantity": HEAD.replace("cpu}", 'cpu, kvCacheMemory: "2Gi\\n"}'),
    "thousands of brackets": "[" * 3000,
    "a hundred levels": HEAD + TEMPLATE % ("a: " + "[" * 120 + "]" * 120),
    "a value in itself": HEAD + TEMPLATE % "a: &a [*a]",
    "aliases of aliases": "- &a0 [x]\n"
    + "".join(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)),
    "digits without end": HEAD + TEMPLATE % f"a: {'9' * 5000}",
    "NUL bytes": "\0\1\2",
    "syntax": "a: b: c\n",
    "mount of no volume": HEAD + OCTAVO % "volumeMounts: [{name: nope, mountPath: /x}]",
    "env is a mapping": HEAD + OCTAVO % "env: {A: b}",
    "grace is a word": HEAD + TEMPLATE % "terminationGracePeriodSeconds: abc",
}
DEPLOYMENT = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n"
TOY = DEPLOYMENT + "spec: {template: {spec: {%s}}}\n"
BAD_FOR_UP = {
    "Deployment without spec": DEPLOYMENT,
    "Deployment of text": TOY.replace("{template: {spec: {%s}}}", "x"),
    "no containers": TOY % "containers: []",
    "a name that leaves the log folder": TOY % "containers: [{name: .., command: [x]}]",
    "grace of a Deployment": TOY % "containers: [{name: a}], terminationGracePeriodSeconds: abc",
    "metadata is text": "kind: Secret\nmetadata: x\n",
    "Secret that is not base64": "kind: Secret\nmetadata: {name: s}\ndata: {a: '%%%%x'}\n",
    "ConfigMap with a list": "kind: ConfigMap\nmetadata: {name: s}\ndata: [1]\n",
}


def run(tmp_path: Path, command: click.Command, text: str) -> Result:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return CliRunner().invoke(command, ["-f", str(path)])


def check(result: Result) -> None:
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert len(result.output.strip().splitlines()) == 1, result.output


@pytest.fixture
def never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        pytest.fail("it was started")

    monkeypatch.setattr(up_module.Up, "run", fail)


@pytest.mark.parametrize("text", BAD_FOR_BOTH.values(), ids=BAD_FOR_BOTH)
def test_render_one_line(tmp_path: Path, text: str) -> None:
    check(run(tmp_path, render, text))


@pytest.mark.usefixtures("never_run")
@pytest.mark.parametrize(
    "text", [*BAD_FOR_BOTH.values(), *BAD_FOR_UP.values()], ids=[*BAD_FOR_BOTH, *BAD_FOR_UP]
)
def test_up_one_line(tmp_path: Path, text: str) -> None:
    check(run(tmp_path, up, text))


def test_yaml_errors_have_their_place(tmp_path: Path) -> None:
    result = run(tmp_path, render, "a: b: c\n")
    assert result.output.endswith(
        "is not YAML: line 1, column 5: mapping values are not allowed here\n"
    )


def test_up_names_the_file(tmp_path: Path) -> None:
    result = run(tmp_path, up, HEAD.replace("device: cpu", "maxModelLn: 3"))
    assert "x.yaml: InferenceService a: spec.engine.maxModelLn: unknown field" in result.output


@pytest.mark.parametrize(
    "text",
    [
        HEAD + TEMPLATE % "restartPolicy: null",
        HEAD + OCTAVO % "env: [{name: B, value: 2024-01-01}]",  # a date for plain PyYAML
        HEAD.replace('"file:///m.gguf"', '"hf://a/b", revision: 2024-02-30'),
    ],
    ids=["null restartPolicy", "date as text", "no such date"],
)
def test_render_takes_what_the_api_server_takes(tmp_path: Path, text: str) -> None:
    result = run(tmp_path, render, text)
    assert result.exit_code == 0, result.output or repr(result.exception)


def test_null_containers_keep_the_server(tmp_path: Path) -> None:
    """As the API server drops nulls where its schema knows the field."""
    result = run(tmp_path, render, HEAD + TEMPLATE % "containers: null")
    deployment = next(yaml.safe_load_all(result.output))
    assert deployment["spec"]["template"]["spec"]["containers"][0]["name"] == "octavo"


def test_null_replicas_are_one(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    text = TOY % "containers: [{name: a, args: null}], volumes: [{name: v, emptyDir: null}]"
    path.write_text(text.replace("{template", "{replicas: null, template"), encoding="utf-8")
    (pod,) = read_workloads([str(path)], None).pods
    assert pod["spec"]["volumes"] == [{"name": "v", "emptyDir": {}}]


def test_up_of_one_service_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(HEAD, encoding="utf-8")
    with pytest.raises(click.ClickException, match="InferenceService a: its pods are there"):
        read_workloads([str(path), str(path)], None)


def test_lists_are_read_item_by_item(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("kind: List\nitems: [{kind: A}, {kind: B}]\n---\n---\nkind: C\n")
    assert [each["kind"] for _, each in read_documents([str(path)])] == ["A", "B", "C"]


def test_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff")
    with pytest.raises(UnreadableManifest, match=r"x\.yaml: is not UTF-8"):
        list(read_documents([str(path)]))
