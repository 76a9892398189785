import socket
import sys
from pathlib import Path

import pytest
from tests.operator.local.pods import container, make_pod

from octavo_operator.local.sandbox import LocalSandbox, Mount, rewrite_path, rewrite_ports

MOUNTS = [
    Mount(path="/models", source=Path("/home/me/models")),
    Mount(path="/models/claim", source=Path("/srv/claim")),
]


@pytest.mark.parametrize(
    ("word", "result"),
    [
        ("/models", "/home/me/models"),
        ("/models/", "/home/me/models"),
        ("/models/a.gguf", "/home/me/models/a.gguf"),
        ("/models/claim/a", "/srv/claim/a"),
        ("/models2/a", "/models2/a"),
        ("models/a", "models/a"),
        ("--model=/models/a", "--model=/home/me/models/a"),
        ("x=/models/a", "x=/models/a"),
        ("see /models/a", "see /models/a"),
        ("/model", "/model"),
    ],
)
def test_rewrite_path(word: str, result: str) -> None:
    assert rewrite_path(word, MOUNTS) == result


@pytest.mark.parametrize(
    ("argv", "result"),
    [
        (["s", "--port", "80"], ["s", "--port", "81"]),
        (["s", "--port=80"], ["s", "--port=81"]),
        (["s", "-p", "80"], ["s", "-p", "81"]),
        (["s", "--metrics-port=80"], ["s", "--metrics-port=81"]),
        (["s", "--port", "90"], ["s", "--port", "90"]),
        (["s", "80", "--size=80"], ["s", "80", "--size=80"]),
    ],
)
def test_rewrite_ports(argv: list[str], result: list[str]) -> None:
    assert rewrite_ports(argv, {80: 81}) == result


def ported(name: str, port: int) -> dict:
    return make_pod(container(["x"], ports=[{"containerPort": port}]), name=name)


async def test_ports_move_when_taken_and_never_meet() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        sandbox = LocalSandbox()
        pods = [ported(f"p{index}", taken) for index in range(3)]
        for pod in pods:
            assert await sandbox.create(pod) == "127.0.0.1"
        ports = {sandbox.port(pod, taken) for pod in pods}
        assert len(ports) == 3
        assert taken not in ports
        await sandbox.destroy(pods[0])
        assert sandbox.port(pods[0], taken) == taken


async def test_octavo_is_this_python_on_a_local_address() -> None:
    sandbox = LocalSandbox({"/models": Path("/m")})
    pod = ported("p", 8000)
    await sandbox.create(pod)
    port = str(sandbox.port(pod, 8000))
    launch = sandbox.wrap(
        pod, pod["spec"]["containers"][0], ["octavo", "serve", "/models/a"], {}, []
    )
    assert launch.argv == [
        *[sys.executable, "-m", "octavo_server.cli", "serve", "/m/a"],
        *["--port", port, "--host", "127.0.0.1"],
    ]
    argv = ["octavo", "serve", "x", "--port=8000", "--host=::"]
    launch = sandbox.wrap(pod, pod["spec"]["containers"][0], argv, {}, [])
    assert launch.argv[4:] == ["x", f"--port={port}", "--host=::"]


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_SHELL", "1")
    monkeypatch.setenv("HF_HOME", "/mine")
    mounts = [{"name": "cache", "mountPath": "/cache"}]
    one = container(["x"], volumeMounts=mounts, workingDir="/cache/w")
    pod = make_pod(one, volumes=[{"name": "cache", "emptyDir": {}}])
    placed = [
        Mount(path="/cache", source=Path("/tmp/empty")),
        Mount(path="/dev/termination-log", source=Path("/tmp/message")),
    ]
    env = {"HF_HOME": "/cache/hf", "OTHER": "/cache/x", "LOG": "/dev/termination-log"}
    launch = LocalSandbox().wrap(pod, one, ["x"], env, placed)
    assert launch.env["FROM_SHELL"] == "1"
    assert launch.env["HF_HOME"] == "/mine"  # an empty cache would download the model again
    assert launch.env["OTHER"] == "/tmp/empty/x"
    assert launch.env["LOG"] == launch.env["OCTAVO_TERMINATION_LOG"] == "/tmp/message"
    assert launch.cwd == "/tmp/empty/w"
    launch = LocalSandbox({"/cache": Path("/mapped")}).wrap(pod, one, ["x"], env, placed)
    assert launch.env["HF_HOME"] == "/mapped/hf"


def test_claims_and_images_come_from_volumes() -> None:
    mounts = [{"name": "model", "mountPath": "/models/claim"}]
    volume = {"name": "model", "persistentVolumeClaim": {"claimName": "claim"}}
    pod = make_pod(container(["x"], volumeMounts=mounts), volumes=[volume])
    assert LocalSandbox().volume_folder(pod, volume) is None
    given = LocalSandbox({"/models": Path("/m")}).volume_folder(pod, volume)
    assert given == Path("/m/claim")
