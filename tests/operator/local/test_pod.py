"""Real processes under the runner: phases, restarts, references, messages."""

import asyncio
import json
from pathlib import Path

import pytest
from tests.operator.local.pods import Run, container, make_pod, python

from octavo_operator.local.resolver import Objects

SLEEP = python("import time; time.sleep(60)")


async def test_a_pod_that_completes(tmp_path: Path) -> None:
    pod = make_pod(container(python("print('hi')")), restartPolicy="Never")
    async with Run(pod, tmp_path) as run:
        await run.ended()
    assert [status["phase"] for status in run.statuses][0] == "Pending"
    assert run.status["phase"] == "Succeeded"
    assert run.main["state"]["terminated"]["reason"] == "Completed"
    assert run.log() == "hi\n"
    assert any("running" in s["containerStatuses"][0]["state"] for s in run.statuses)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("raise SystemExit(3)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 139),
    ],
)
async def test_exit_codes(tmp_path: Path, script: str, code: int) -> None:
    async with Run(make_pod(container(python(script)), restartPolicy="Never"), tmp_path) as run:
        await run.ended()
    ended = run.main["state"]["terminated"]
    assert (run.status["phase"], ended["exitCode"], ended["reason"]) == ("Failed", code, "Error")


async def test_restarts_back_off(tmp_path: Path) -> None:
    pod = make_pod(container(python("raise SystemExit(1)")))
    async with Run(pod, tmp_path) as run:
        await run.until(lambda: run.main["restartCount"] >= 3)
        waiting = [
            status["containerStatuses"][0]
            for status in run.statuses
            if "waiting" in status["containerStatuses"][0]["state"]
        ]
    crashes = [c for c in waiting if c["state"]["waiting"]["reason"] == "CrashLoopBackOff"]
    assert crashes[0]["restartCount"] == 1  # the first restart is immediate
    assert crashes[0]["lastState"]["terminated"]["exitCode"] == 1
    assert "back-off 0.2s restarting" in crashes[0]["state"]["waiting"]["message"]
    assert "back-off 0.4s restarting" in crashes[1]["state"]["waiting"]["message"]
    assert "BackOff" in run.reasons()
    assert (run.log_folder / "main" / "2.log").exists()


async def test_on_failure_restarts_only_failures(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    script = f"import os; os.path.exists({str(flag)!r}) or (open({str(flag)!r}, 'w'), os._exit(1))"
    pod = make_pod(container(python(script)), restartPolicy="OnFailure")
    async with Run(pod, tmp_path) as run:
        await run.ended()
    assert (run.status["phase"], run.main["restartCount"]) == ("Succeeded", 1)
    assert run.main["lastState"]["terminated"]["exitCode"] == 1


async def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    async with Run(make_pod(container(["/no/such/program"])), tmp_path) as run:
        await run.until(lambda: "RunContainerError" in json.dumps(run.statuses))
    last = run.main["state"]["terminated"]
    assert (last["reason"], last["exitCode"]) == ("StartError", 128)
    assert last["message"] == "exec '/no/such/program': No such file or directory"


async def test_init_containers_run_in_order(tmp_path: Path) -> None:
    file = tmp_path / "order"
    inits = [
        container(["/bin/sh", "-c", f"sleep 0.1; echo {name} >> {file}"], name=name)
        for name in ("one", "two")
    ]
    pod = make_pod(container(["/bin/cat", str(file)]), initContainers=inits, restartPolicy="Never")
    async with Run(pod, tmp_path) as run:
        await run.ended()
    assert run.log() == "one\ntwo\n"
    assert all(status["ready"] for status in run.status["initContainerStatuses"])
    first = run.statuses[0]
    assert first["containerStatuses"][0]["state"] == {"waiting": {"reason": "PodInitializing"}}
    assert first["phase"] == "Pending"


async def test_a_failed_init_container(tmp_path: Path) -> None:
    inits = [container(["/bin/false"], name="bad")]
    pod = make_pod(container(["/bin/true"]), initContainers=inits, restartPolicy="Never")
    async with Run(pod, tmp_path) as run:
        await run.ended()
    assert run.status["phase"] == "Failed"
    assert run.condition("Initialized") == "False"
    assert run.log() == ""


async def test_a_missing_secret_is_waited_for(tmp_path: Path) -> None:
    secrets: dict = {}
    source = {"secretKeyRef": {"name": "s", "key": "k"}}
    command = ["/bin/sh", "-c", "echo $X"]
    pod = make_pod(
        container(command, env=[{"name": "X", "valueFrom": source}]), restartPolicy="Never"
    )
    async with Run(pod, tmp_path, resolver=Objects(secrets, {})) as run:
        await run.until(lambda: "Failed" in run.reasons())
        assert run.main["state"]["waiting"] == {
            "reason": "CreateContainerConfigError",
            "message": 'secret "s" not found',
        }
        assert run.status["phase"] == "Pending"
        secrets["default", "s"] = {"k": b"now"}
        await run.ended()
    assert run.log() == "now\n"


async def test_a_secret_that_is_no_text(tmp_path: Path) -> None:
    source = {"secretKeyRef": {"name": "s", "key": "k"}}
    pod = make_pod(container(SLEEP, env=[{"name": "X", "valueFrom": source}]))
    resolver = Objects({("default", "s"): {"k": b"\xff"}}, {})
    async with Run(pod, tmp_path, resolver=resolver) as run:
        await run.until(lambda: "Failed" in run.reasons())
        assert run.main["state"]["waiting"]["reason"] == "CreateContainerConfigError"


async def test_volumes_are_shared_and_removed(tmp_path: Path) -> None:
    mounts = [
        {"name": "shared", "mountPath": "/data"},
        {"name": "settings", "mountPath": "/etc/settings"},
    ]
    volumes = [
        {"name": "shared", "emptyDir": {}},
        {"name": "settings", "configMap": {"name": "c"}},
    ]
    copy = "import shutil, sys; shutil.copy(*sys.argv[1:])"
    show = "import sys; print(sys.argv[1], open(sys.argv[1]).read())"
    pod = make_pod(
        container(python(show, "/data/x"), volumeMounts=mounts),
        initContainers=[
            container(python(copy, "/etc/settings/a", "/data/x"), name="i", volumeMounts=mounts)
        ],
        volumes=volumes,
        restartPolicy="Never",
    )
    resolver = Objects({}, {("default", "c"): {"a": b"1"}})
    async with Run(pod, tmp_path, resolver=resolver) as run:
        await run.ended()
    path, content = run.log().split()
    assert content == "1"
    assert not Path(path).parent.exists()


async def test_a_missing_volume_is_waited_for(tmp_path: Path) -> None:
    maps: dict = {}
    volumes = [{"name": "v", "configMap": {"name": "c"}}]
    pod = make_pod(container(["/bin/true"]), volumes=volumes, restartPolicy="Never")
    async with Run(pod, tmp_path, resolver=Objects({}, maps)) as run:
        await run.until(lambda: "FailedMount" in run.reasons())
        assert run.main["state"] == {"waiting": {"reason": "ContainerCreating"}}
        maps["default", "c"] = {}
        await run.ended()
    assert run.status["phase"] == "Succeeded"


WRITES = "import os, sys; open(os.environ['OCTAVO_TERMINATION_LOG'], 'w').write({!r}); sys.exit({})"


@pytest.mark.parametrize(
    ("script", "policy", "message"),
    [
        (WRITES.format("why", 1), "File", "why"),
        (WRITES.format("bye", 0), "File", "bye"),
        (WRITES.format("x" * 5000, 1), "File", "x" * 4096),
        ("print('trace'); print('last'); raise SystemExit(1)", "File", None),
        (
            "print('trace'); print('last'); raise SystemExit(1)",
            "FallbackToLogsOnError",
            "trace\nlast\n",
        ),
        ("print('fine')", "FallbackToLogsOnError", None),
        (WRITES.format("why", 1), "FallbackToLogsOnError", "why"),
    ],
)
async def test_termination_message(tmp_path: Path, script: str, policy: str, message: str) -> None:
    one = container(python(script), terminationMessagePolicy=policy)
    async with Run(make_pod(one, restartPolicy="Never"), tmp_path) as run:
        await run.ended()
    assert run.main["state"]["terminated"].get("message") == message


async def test_a_restart_starts_with_an_empty_message(tmp_path: Path) -> None:
    script = """
        import os, sys
        with open(os.environ["OCTAVO_TERMINATION_LOG"], "a") as file:
            file.write("x")
        sys.exit(1)
    """
    async with Run(make_pod(container(python(script))), tmp_path) as run:
        await run.until(lambda: run.main["restartCount"] >= 2)
    messages = [
        status["containerStatuses"][0]["state"]["terminated"].get("message")
        for status in run.statuses
        if "terminated" in status["containerStatuses"][0]["state"]
    ]
    assert messages[:2] == ["x", "x"]


async def test_unsupported_fields_are_refused(tmp_path: Path) -> None:
    async with Run(make_pod(container(SLEEP), hostNetwork=True), tmp_path) as run:
        await run.ended()
    assert run.events == [
        ("Warning", "UnsupportedField", "not supported on this node: spec.hostNetwork")
    ]
    assert (run.status["phase"], run.status["reason"]) == ("Failed", "UnsupportedField")


async def test_stop_before_anything_ran(tmp_path: Path) -> None:
    volumes = [{"name": "v", "configMap": {"name": "c"}}]
    async with Run(make_pod(container(SLEEP), volumes=volumes), tmp_path) as run:
        await run.until(lambda: "FailedMount" in run.reasons())
        await run.runner.stop(None)
    assert run.status["phase"] == "Failed"
    assert run.main["state"]["terminated"]["reason"] == "ContainerStatusUnknown"


async def test_two_containers_end_together(tmp_path: Path) -> None:
    async with Run(make_pod(container(SLEEP), container(SLEEP, name="b")), tmp_path) as run:
        await run.until(lambda: run.condition("Ready") == "True")
        await asyncio.wait_for(run.runner.stop(None), 10)
        await run.ended()
    codes = [c["state"]["terminated"]["exitCode"] for c in run.status["containerStatuses"]]
    assert codes == [143, 143]
