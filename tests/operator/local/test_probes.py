"""Probes against a real server, and the counting as a table."""

import socket
from pathlib import Path
from typing import Any

import pytest
from tests.operator.local.pods import SERVER, Run, container, make_pod, python

from octavo_operator.local.probes import Counter, Target, check, port_number


@pytest.mark.parametrize(
    ("start", "results", "states"),
    [
        (False, [1], [True]),
        (False, [0, 0, 0], [None, None, None]),
        (True, [0, 0, 0, 1], [None, None, False, True]),
        (True, [0, 0, 1, 0, 0], [None, None, None, None, None]),
        (None, [0, 0, 0], [None, None, False]),
        (None, [0, 1], [None, True]),
    ],
)
def test_thresholds(start: bool | None, results: list[int], states: list[bool | None]) -> None:
    counter = Counter({}, start)
    assert [counter.add(bool(result)) for result in results] == states


def test_success_threshold() -> None:
    counter = Counter({"successThreshold": 2}, False)
    assert [counter.add(r) for r in (True, False, True, True)] == [None, None, None, True]


def test_ports_by_name() -> None:
    one = container(["x"], ports=[{"name": "http", "containerPort": 8000}])
    assert [port_number(one, port) for port in (1, "2", "http")] == [1, 2, 8000]
    with pytest.raises(OSError, match='couldn\'t find port "none" in container main'):
        port_number(one, "none")


async def no_execute(command: list[str], timeout_seconds: float) -> tuple[int, str]:
    if command == ["slow"]:
        raise TimeoutError
    return int(command[0]), "output"


@pytest.mark.parametrize(
    ("action", "failure"),
    [
        ({"exec": {"command": ["0"]}}, None),
        ({"exec": {"command": ["1"]}}, "output"),
        ({"exec": {"command": ["slow"]}}, "timed out after 1 s"),
        ({"tcpSocket": {"port": 1}}, "Connect"),
        ({"httpGet": {"port": 1}}, "Cannot connect"),
        ({"httpGet": {"port": "none"}}, "couldn't find port"),
    ],
)
async def test_single_checks(action: dict[str, Any], failure: str | None) -> None:
    def port(port: int | str) -> int:
        return port_number(container(["x"]), port)

    found = await check(action, Target(host="127.0.0.1", port=port, execute=no_execute))
    assert found is None if failure is None else failure in str(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server(tmp_path: Path, **fields: Any) -> dict[str, Any]:
    """READY and LIVE are files with the status codes of /ready and /live."""
    port = free_port()
    for name in ("ready", "live"):
        (tmp_path / name).write_text("200")
    env = [
        {"name": "READY", "value": str(tmp_path / "ready")},
        {"name": "LIVE", "value": str(tmp_path / "live")},
    ]
    ports = [{"name": "http", "containerPort": port}]
    command = python(SERVER, "--port", str(port))
    return container(command, env=env, ports=ports, **fields)


def get(path: str, **fields: Any) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "http"}, "periodSeconds": 0.05, **fields}


async def test_readiness_gates_and_comes_back(tmp_path: Path) -> None:
    one = server(tmp_path, readinessProbe=get("/ready"))
    (tmp_path / "ready").write_text("503")
    async with Run(make_pod(one), tmp_path) as run:
        await run.until(lambda: "HTTP probe failed with statuscode: 503" in str(run.events))
        assert run.condition("Ready") == "False"
        assert run.main["started"] is True
        (tmp_path / "ready").write_text("200")
        await run.until(lambda: run.condition("Ready") == "True")
        (tmp_path / "ready").write_text("500")
        await run.until(lambda: run.condition("Ready") == "False")
        assert run.main["restartCount"] == 0


async def test_startup_holds_the_others_back(tmp_path: Path) -> None:
    (tmp_path / "live").write_text("500")
    one = server(
        tmp_path,
        startupProbe=get("/ready", failureThreshold=1000),
        livenessProbe=get("/live", failureThreshold=1),
    )
    (tmp_path / "ready").write_text("503")
    async with Run(make_pod(one), tmp_path) as run:
        await run.until(lambda: "Startup probe failed: HTTP" in str(run.events))
        assert run.main["started"] is False
        assert run.main["ready"] is False
        assert run.main["restartCount"] == 0
        (tmp_path / "ready").write_text("200")
        await run.until(lambda: run.condition("Ready") == "True")


async def test_a_failed_startup_restarts(tmp_path: Path) -> None:
    one = server(tmp_path, startupProbe=get("/ready", failureThreshold=2, initialDelaySeconds=0.3))
    (tmp_path / "ready").write_text("503")
    async with Run(make_pod(one), tmp_path) as run:
        await run.until(lambda: run.main["restartCount"] == 1)
        assert (
            "Normal",
            "Killing",
            "Container main failed startup probe, will be restarted",
        ) in run.events


async def test_a_failed_liveness_restarts(tmp_path: Path) -> None:
    one = server(
        tmp_path,
        startupProbe=get("/ready", failureThreshold=1000),
        livenessProbe=get("/live", failureThreshold=2),
    )
    async with Run(make_pod(one), tmp_path) as run:
        await run.until(lambda: run.condition("Ready") == "True" and "serving" in run.log())
        (tmp_path / "live").write_text("500")
        await run.until(lambda: run.main["restartCount"] == 1)
        (tmp_path / "live").write_text("200")
        await run.until(lambda: run.condition("Ready") == "True")
        assert run.main["lastState"]["terminated"]["exitCode"] == 0  # it had time to say so
    assert run.log() == "serving\nsigterm\n"
    assert "will be restarted" in str(run.events)


async def test_exec_probe_runs_with_the_containers_environment(tmp_path: Path) -> None:
    file = tmp_path / "file"
    probe = {"exec": {"command": ["/bin/sh", "-c", 'test -e "$FILE"']}, "periodSeconds": 0.1}
    env = [{"name": "FILE", "value": str(file)}]
    one = container(python("import time; time.sleep(60)"), env=env, readinessProbe=probe)
    async with Run(make_pod(one), tmp_path) as run:
        await run.until(lambda: "command exited with 1" in str(run.events))
        assert run.condition("Ready") == "False"
        file.touch()
        await run.until(lambda: run.condition("Ready") == "True")


async def test_tcp_probe(tmp_path: Path) -> None:
    probe = {"tcpSocket": {"port": "http"}, "periodSeconds": 0.05}
    async with Run(make_pod(server(tmp_path, readinessProbe=probe)), tmp_path) as run:
        await run.until(lambda: run.condition("Ready") == "True")
