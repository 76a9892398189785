"""`octavo up` as a person starts it: a process with a terminal's signals."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from tests.operator.local.pods import SERVER, container, python
from tests.operator.local.test_probes import free_port, get

from octavo_operator.local.up import command, read_workloads

ROOT = Path(__file__).parents[3]
FAILS = """
    import os, sys
    with open(os.environ["OCTAVO_TERMINATION_LOG"], "w") as file:
        file.write('{"reason": "ModelNotFound", "message": "no folder /models/none"}')
    sys.exit(1)
"""


class UpProcess:
    def __init__(self, folder: Path, *args: str) -> None:
        self.log = folder / "up.log"
        start = "from octavo_operator.local.up import command; command()"
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", start, "--backoff-seconds=0.3", *args],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(sys.path),
                    "PYTHONUNBUFFERED": "1",
                    "TMPDIR": str(folder),
                },
                cwd=ROOT,
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    def until(self, pattern: str, seconds: float = 15) -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text, re.MULTILINE)):
            assert time.monotonic() < deadline, self.text
            assert self.process.poll() is None, self.text
            time.sleep(0.02)
        return found

    def ended(self, seconds: float = 15) -> int:
        return self.process.wait(seconds)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Any]:
    started: list[UpProcess] = []

    def start(document: Any, *args: str) -> UpProcess:
        file = tmp_path / "manifest.yaml"
        documents = document if isinstance(document, list) else [document]
        file.write_text(yaml.safe_dump_all(documents))
        started.append(UpProcess(tmp_path, "-f", str(file), *args))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def deployment(*containers: dict[str, Any], replicas: int = 1, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "toy"},
        "spec": {
            "replicas": replicas,
            "template": {"spec": {"containers": list(containers), **spec}},
        },
    }


def toy(port: int, **fields: Any) -> dict[str, Any]:
    return container(
        python(SERVER, "--port", str(port)),
        ports=[{"name": "http", "containerPort": port}],
        readinessProbe=get("/ready"),
        **fields,
    )


def fetch(url: str) -> int:
    with urllib.request.urlopen(url, timeout=5) as response:
        return int(response.status)


def test_replicas_serve_and_ctrl_c_ends_them(up: Any) -> None:
    port = free_port()
    hook = {"preStop": {"sleep": {"seconds": 0.1}}}
    run = up(deployment(toy(port, lifecycle=hook), replicas=2))
    urls = [
        run.until(rf"^toy-{index} +Ready +0 +\d+\.\d +(http://127.0.0.1:\d+)$")[1]
        for index in (0, 1)
    ]
    assert f"http://127.0.0.1:{port}" in urls
    assert len(set(urls)) == 2
    assert [fetch(url) for url in urls] == [200, 200]
    run.process.send_signal(signal.SIGINT)
    assert run.ended() == 0
    assert run.text.count("| sigterm") == 2
    assert re.search(r"^toy-0 +Completed", run.text, re.MULTILINE)
    assert "error" not in run.text


def test_port_and_a_mapped_volume(up: Any, tmp_path: Path) -> None:
    (tmp_path / "ready").write_text("200")
    port = free_port()
    one = toy(8000, env=[{"name": "READY", "value": "/models/ready"}])
    volume = f"--volume=/models={tmp_path}"
    run = up(deployment(one), f"--port={port}", volume, "--no-logs")
    assert run.until(r"Ready.*(http://\S+)$")[1] == f"http://127.0.0.1:{port}"
    run.process.send_signal(signal.SIGTERM)
    assert run.ended() == 0
    assert " | " not in run.text


def test_a_second_ctrl_c_kills(up: Any) -> None:
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(99)"
    run = up(deployment(container(python(script))))
    run.until(r"\| up$")
    run.process.send_signal(signal.SIGINT)
    run.until("^stopping")
    run.process.send_signal(signal.SIGINT)
    assert run.ended(8) == 130


def test_a_failing_pod_says_why_and_restarts(up: Any) -> None:
    run = up(deployment(container(python(FAILS))))
    run.until("CrashLoopBackOff")
    run.until(r"^toy-0 +\S+ +2 ")
    assert "error: toy-0: ModelNotFound: no folder /models/none\n" in run.text
    run.process.send_signal(signal.SIGINT)
    assert run.ended() == 0


def test_exit_on_failure(up: Any) -> None:
    run = up(deployment(container(python(FAILS))), "--exit-on-failure")
    assert run.ended() == 1
    assert run.text.count("error: toy-0: ModelNotFound: no folder /models/none\n") == 1
    assert re.findall(r"^toy-0 +Error +(\d)", run.text, re.MULTILINE) == ["0"]


MISSING = {
    "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
    "volumeMounts": [{"name": "v", "mountPath": "/v"}],
}


@pytest.mark.parametrize(
    ("field", "reason", "kind"),
    [
        ("env", "CreateContainerConfigError: secret", "Secret"),
        ("volumeMounts", "FailedMount: MountVolume.SetUp failed: configmap", "ConfigMap"),
    ],
)
def test_exit_on_failure_where_an_object_is_missing(
    up: Any, field: str, reason: str, kind: str
) -> None:
    one = container(python("import time; time.sleep(9)"), **{field: MISSING[field]})
    volumes = [{"name": "v", "configMap": {"name": "hub"}}] if kind == "ConfigMap" else []
    run = up(deployment(one, volumes=volumes), "--exit-on-failure")
    assert run.ended() == 1
    remedy = f'"hub" not found; add the {kind} to a file given with -f'
    assert run.text.count(f"error: toy-0: {reason} {remedy}\n") == 1


def test_unsupported_fields_end_it(up: Any) -> None:
    run = up(deployment(container(["x"]), hostNetwork=True))
    assert run.ended() == 1
    assert (
        "error: toy-0: UnsupportedField: not supported on this node: spec.hostNetwork" in run.text
    )


def test_secrets_come_from_the_files(up: Any) -> None:
    secret = {"kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "from a file"}}
    env = [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]
    one = container(python("import os, time; print(os.environ['X']); time.sleep(9)"), env=env)
    run = up([secret, deployment(one)])
    run.until(r"^toy-0 \| from a file$")


def test_an_inference_service_runs_the_operators_rendering(up: Any, tmp_path: Path) -> None:
    """`octavo serve` is replaced by a toy that knows the same flags and paths."""
    package = tmp_path / "shadow" / "octavo_server"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    check = "assert sys.argv[1:3] == ['serve', {!r}], sys.argv\n".format(str(tmp_path / "m.gguf"))
    flags = "sys.argv = [a for w in sys.argv for a in w.split('=')]\n"
    script = "import sys\n" + check + flags + textwrap.dedent(SERVER)
    (package / "cli.py").write_text(script)
    manifest = {
        "apiVersion": "octavo.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "smol"},
        "spec": {
            "model": {"uri": "file:///models/m.gguf"},
            "engine": {"device": "cpu"},
            "podTemplate": {
                "spec": {
                    "containers": [
                        {
                            "name": "octavo",
                            "env": [{"name": "PYTHONPATH", "value": str(package.parent)}],
                            "lifecycle": {"preStop": {"sleep": {"seconds": 0}}},
                        }
                    ]
                }
            },
        },
    }
    port = free_port()
    run = up(manifest, f"--port={port}", f"--volume=/models={tmp_path}")
    url = run.until(r"^smol-0 +Ready .*(http://\S+)$")[1]
    assert url == f"http://127.0.0.1:{port}/v1"
    assert fetch(f"{url}/models") == 200
    run.process.send_signal(signal.SIGINT)
    assert run.ended() == 0


@pytest.mark.parametrize(
    ("content", "args", "sentence"),
    [
        ("a: [", [], "is not YAML"),
        ("kind: Service\nmetadata: {name: x}", [], "nothing to run"),
        (
            "{apiVersion: octavo.dev/v1alpha1, kind: Inference, metadata: {name: x}}",
            [],
            "has no kind 'Inference'; write InferenceService",
        ),
        (json.dumps(deployment(container(["x"]))), ["--volume=x"], "is not CONTAINER_PATH=DIR"),
        (json.dumps(deployment(container(["x"]))), ["--volume=/a=/no/such"], "does not exist"),
        (
            "{apiVersion: octavo.dev/v1alpha1, kind: InferenceService, metadata: {name: x}, "
            "spec: {model: {uri: 's3://x'}}}",
            [],
            "spec.model.uri",
        ),
        (
            "{apiVersion: octavo.dev/v1alpha1, kind: InferenceService, metadata: {name: x}, "
            "spec: {model: {uri: 'pvc://claim/m'}}}",
            [],
            "x-0: say which folder stands for /models/claim: --volume /models/claim=DIR",
        ),
        (
            (ROOT / "examples" / "smollm2.yaml").read_text(),
            [],
            "smollm2-0: there is no /models/SmolLM2-135M-Instruct.Q4_1.gguf on this machine; say "
            "which folder stands for /models: --volume /models=DIR",
        ),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, content: str, args: list[str], sentence: str
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(content)
    result = CliRunner().invoke(command, ["-f", str(file), *args])
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert sentence in result.output


def test_replicas_override(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps(deployment(container(["x"]))))
    pods = read_workloads([str(file)], 3).pods
    assert [pod["metadata"]["name"] for pod in pods] == ["toy-0", "toy-1", "toy-2"]


@pytest.mark.parametrize("last", [None, b"POD", b"| 0"])
def test_a_reader_that_leaves_ends_it(tmp_path: Path, last: bytes | None) -> None:
    """`octavo up | head -1`: the pods end, and nothing is printed but what head took."""
    file = tmp_path / "x.yaml"
    loop = "import time\nfor n in range(999): print(n); time.sleep(0.05)"
    file.write_text(json.dumps(deployment(container(python(loop)))))
    start = "from octavo_operator.local.up import command; command()"
    with subprocess.Popen(
        [sys.executable, "-c", start, "-f", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        while last is not None and last not in process.stdout.readline():
            pass
        process.stdout.close()
        try:
            assert process.wait(15) == 1
        finally:
            process.kill()
        assert process.stderr.read() == b""


def test_a_log_folder_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps(deployment(container(["x"]))))
    result = CliRunner().invoke(command, ["-f", str(file), "--log-folder", str(file / "logs")])
    assert result.exit_code == 1
    assert result.output.startswith("Error: cannot write to --log-folder ")


def test_logs_of_a_run_before_are_replaced(up: Any, tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "toy-0" / "main"
    folder.mkdir(parents=True)
    (folder / "0.log").write_text("of yesterday\n")
    says = container(python("import time; print('of today'); time.sleep(9)"))
    run = up(deployment(says), f"--log-folder={tmp_path / 'logs'}")
    run.until(r"\| of today$")
    assert "yesterday" not in run.text + (folder / "0.log").read_text()
