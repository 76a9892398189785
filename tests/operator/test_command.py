"""`octavo render` and `octavo operator` as a person calls them; the package without torch."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click import ClickException
from click.testing import CliRunner
from tests.operator.services import EXAMPLES, ROOT

from octavo_operator import names
from octavo_operator.main import command as operator_command
from octavo_operator.main import service_of
from octavo_operator.manifests import read_services
from octavo_operator.render import render
from octavo_operator.render_command import command
from octavo_operator.startup import check_port


def test_render_prints_what_is_applied() -> None:
    arguments = [word for path in EXAMPLES for word in ("-f", str(path))]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    kinds = [each["kind"] for each in yaml.safe_load_all(result.output)]
    always = ["Deployment", "Service", "PodDisruptionBudget"]
    assert [kind for kind in kinds if kind in always] == always * len(EXAMPLES)
    assert set(kinds) - set(always) == {"HorizontalPodAutoscaler"}  # one asks for it


def test_render_reads_folders_and_standard_input() -> None:
    folder = CliRunner().invoke(command, ["-f", str(ROOT / "examples")])
    assert folder.output.count("kind: Deployment") == len(EXAMPLES)
    text = EXAMPLES[0].read_text(encoding="utf-8")
    assert "kind: Service" in CliRunner().invoke(command, ["-f", "-"], input=text).output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: InferenceService\napiVersion: octavo.dev/v1alpha1\n", "metadata: is required"),
        (
            "kind: InferenceService\napiVersion: octavo.dev/v1alpha1\nmetadata: {name: a}\n"
            "spec: {model: {uri: 'hf://a/b'}, engine: {maxModelLn: 3}}",
            "InferenceService a: spec.engine.maxModelLn: unknown field",
        ),
        (
            "kind: InferenceServce\napiVersion: octavo.dev/v1alpha1\nmetadata: {name: a}\n",
            "octavo.dev/v1alpha1 has no kind 'InferenceServce'; write InferenceService",
        ),
        (
            "kind: InferenceService\napiVersion: octavo.dev/v1alpha1\nmetadata: {name: a}\n"
            "spec: {model: {}, engine: {kvCacheMemory: foo, blockSize: 17}}",
            "spec.model.uri: is required; spec.engine.kvCacheMemory: 'foo' does not match "
            "^[0-9]+(\\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$; write a quantity such as 256Mi; "
            "spec.engine.blockSize: 17 is not one of 16, 32, 64, 128\n",
        ),
        ("a: [", "is not YAML"),
        ("just text", "holds a str"),
        ("kind: Pod", "no InferenceService"),
    ],
)
def test_render_says_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(command, ["-f", str(path)])
    assert result.exit_code == 1
    assert words in result.output
    assert "Traceback" not in result.output


def test_render_of_a_missing_file() -> None:
    result = CliRunner().invoke(command, ["-f", "/nowhere.yaml"])
    assert result.exit_code == 1
    assert "/nowhere.yaml" in result.output


def test_operator_without_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    result = CliRunner().invoke(operator_command, ["--liveness-port", "0"])
    assert result.exit_code == 1
    assert result.output == (
        f"Error: cannot find the cluster: there is no file {tmp_path / 'none'}\n"
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_server_knows_every_flag(example: Path) -> None:
    serve = pytest.importorskip("octavo_server.api.serve").command
    (one,) = read_services([str(example)])
    container = render(one)[0]["spec"]["template"]["spec"]["containers"][0]
    words = [*container["command"][2:], *container["args"]]
    context = serve.make_context("serve", words, resilient_parsing=False)
    assert context.params["port"] == 8000


def test_imports_without_torch() -> None:
    """The operator's image has no torch, no transformers, no numpy."""
    code = """
import importlib, pkgutil, sys
for name in ("torch", "transformers", "numpy", "triton"):
    sys.modules[name] = None
import octavo_operator
for module in pkgutil.walk_packages(octavo_operator.__path__, "octavo_operator."):
    importlib.import_module(module.name)
heavy = [name for name in sys.modules if name.startswith("octavo_server.")]
names = ("model_config", "memory_plan", "gpu_plan", "errors")
names += ("distributed", "distributed.shard", "loading", "loading.damage")
allowed = {"octavo_server." + name for name in names}
assert set(heavy) <= allowed, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            "PYTHONPATH": ":".join(str(ROOT / part) for part in ("server", "kernels", "operator"))
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_busy_port_is_one_line() -> None:
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(
            ClickException, match=rf"cannot listen on port {port} .*--liveness-port"
        ):
            check_port(port, "--liveness-port")
    check_port(port, "--liveness-port")
    check_port(0, "--metrics-port")


def test_a_child_belongs_to_its_owner_whatever_its_label_says() -> None:
    label = {names.SERVICE_LABEL: "b"}
    owner = {"kind": names.KIND, "name": "a", "controller": True}
    assert service_of({"metadata": {"labels": label, "ownerReferences": [owner]}}) == "a"
    replica_set = {"kind": "ReplicaSet", "name": "b-123", "controller": True}
    assert service_of({"metadata": {"labels": label, "ownerReferences": [replica_set]}}) == "b"
    assert service_of({"metadata": {"labels": label}}) == "b"
