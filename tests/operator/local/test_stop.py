"""How pods end: hooks, grace, kill, and no orphans."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from tests.operator.local.pods import SERVER, Run, container, make_pod, python
from tests.operator.local.test_probes import free_port

STUBBORN = python(
    """
    import signal, time
    signal.signal(signal.SIGTERM, lambda *_: print("sigterm", flush=True))
    print("up", flush=True)
    while True: time.sleep(60)
    """
)
# A container whose first process starts another one in a session of its own.
FAMILY = python(
    """
    import os, subprocess, sys, time
    script = "import os, time; os.setsid(); print('child', os.getpid(), flush=True); time.sleep(99)"
    subprocess.Popen([sys.executable, "-I", "-S", "-c", script])
    print("parent", os.getpid(), flush=True)
    time.sleep(99)
    """
)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def pids(log: str) -> list[int]:
    return [int(line.split()[1]) for line in log.splitlines()]


async def test_grace_then_kill(tmp_path: Path) -> None:
    pod = make_pod(container(STUBBORN), terminationGracePeriodSeconds=0.4)
    async with Run(pod, tmp_path) as run:
        await run.until(lambda: run.log() == "up\n")
        began = time.monotonic()
        await run.runner.stop(None)
        assert 0.4 <= time.monotonic() - began < 5
    assert run.log() == "up\nsigterm\n"
    assert run.main["state"]["terminated"]["exitCode"] == 137
    assert run.status["phase"] == "Failed"


async def test_a_second_stop_may_hurry(tmp_path: Path) -> None:
    async with Run(make_pod(container(STUBBORN)), tmp_path) as run:
        await run.until(lambda: run.log() == "up\n")
        first = asyncio.create_task(run.runner.stop(60))
        await run.until(lambda: "sigterm" in run.log())
        await asyncio.wait_for(run.runner.stop(0), 8)
        await asyncio.wait_for(first, 8)


async def test_hooks_run_before_sigterm(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "main" / "0.log"
    hooks = {
        "exec": {"command": ["/bin/sh", "-c", f"sleep 0.2; echo hook >> {log}"]},
        "httpGet": {"path": "/stop", "port": "http"},
    }
    for kind, hook in hooks.items():
        port = free_port()
        one = container(
            python(SERVER, "--port", str(port)),
            ports=[{"name": "http", "containerPort": port}],
            lifecycle={"preStop": {kind: hook}},
        )
        async with Run(make_pod(one), tmp_path) as run:
            await run.until(lambda run=run: run.log() == "serving\n")
            await run.runner.stop(None)
        assert run.log() == "serving\nhook\nsigterm\n", kind
        assert run.main["state"]["terminated"]["exitCode"] == 0
        assert run.status["phase"] == "Succeeded"
        log.unlink()


async def test_sleep_hook_counts_toward_the_grace(tmp_path: Path) -> None:
    hook = {"preStop": {"sleep": {"seconds": 0.3}}}
    async with Run(make_pod(container(STUBBORN, lifecycle=hook)), tmp_path) as run:
        await run.until(lambda: run.log() == "up\n")
        stop = asyncio.create_task(run.runner.stop(2.4))
        began = time.monotonic()
        await run.until(lambda: "sigterm" in run.log())
        assert 0.3 <= time.monotonic() - began < 2
        await stop
        assert 2.3 < time.monotonic() - began < 6


async def test_a_failed_hook_is_told_and_the_pod_ends(tmp_path: Path) -> None:
    hook = {"preStop": {"exec": {"command": ["/bin/false"]}}}
    sleep = python("import time; time.sleep(60)")
    async with Run(make_pod(container(sleep, lifecycle=hook)), tmp_path) as run:
        await run.until(lambda: run.condition("Ready") == "True")
        await run.runner.stop(None)
    assert ("Warning", "FailedPreStopHook") in [event[:2] for event in run.events]


async def test_a_broken_hook_does_not_keep_a_pod(tmp_path: Path) -> None:
    one = container(python("import time; time.sleep(60)"), lifecycle={"preStop": {"exec": {}}})
    async with Run(make_pod(one), tmp_path) as run:
        await run.until(lambda: run.condition("Ready") == "True")
        await asyncio.wait_for(run.runner.stop(None), 10)
    assert "PreStopHook failed: KeyError" in str(run.events)
    assert run.main["state"]["terminated"]["exitCode"] == 143


async def test_a_process_that_ends_during_its_hook(tmp_path: Path) -> None:
    hook = {"preStop": {"sleep": {"seconds": 30}}}
    one = container(python("import time; time.sleep(0.5)"), lifecycle=hook)
    async with Run(make_pod(one), tmp_path) as run:
        await run.until(lambda: run.condition("Ready") == "True")
        await asyncio.wait_for(run.runner.stop(None), 10)
    assert run.status["phase"] == "Succeeded"


async def test_descendants_end_with_the_first_process(tmp_path: Path) -> None:
    async with Run(make_pod(container(FAMILY)), tmp_path) as run:
        await run.until(lambda: len(run.log().splitlines()) == 2)
        await run.runner.stop(None)
    assert not [pid for pid in pids(run.log()) if alive(pid)]


async def test_cancelling_the_run_kills(tmp_path: Path) -> None:
    async with Run(make_pod(container(FAMILY)), tmp_path) as run:
        await run.until(lambda: len(run.log().splitlines()) == 2)
        run.task.cancel()
        await asyncio.wait([run.task])
        assert not [pid for pid in pids(run.log()) if alive(pid)]
        run.task = asyncio.create_task(asyncio.sleep(0))


def test_no_orphans_when_the_runner_is_killed(tmp_path: Path) -> None:
    script = f"""
        import asyncio, sys
        from pathlib import Path
        from tests.operator.local.pods import Run, container, make_pod
        async def main():
            async with Run(make_pod(container({FAMILY!r})), Path({str(tmp_path)!r})):
                await asyncio.sleep(60)
        asyncio.run(main())
    """
    root = Path(__file__).parents[3]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    runner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], env=env, cwd=root)
    log = tmp_path / "logs" / "main" / "0.log"
    try:
        deadline = time.monotonic() + 10
        while not (log.exists() and len(log.read_text().splitlines()) == 2):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        family = pids(log.read_text())
        assert all(alive(pid) for pid in family)
    finally:
        runner.send_signal(signal.SIGKILL)
        runner.wait()
    deadline = time.monotonic() + 2
    while any(alive(pid) for pid in family):
        assert time.monotonic() < deadline, "a container outlived its runner"
        time.sleep(0.02)


async def test_a_stop_that_goes_wrong_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> bool:
        raise RuntimeError("no clock")

    monkeypatch.setattr("octavo_operator.local.process.Process.wait_for", fail)
    async with Run(make_pod(container(STUBBORN)), tmp_path) as run:
        await run.until(lambda: run.log() == "up\n")
        await asyncio.wait_for(run.runner.stop(60), 8)
    told = ("Warning", "FailedKillPod", "stopping failed: RuntimeError: no clock")
    assert told in run.events
    assert run.main["state"]["terminated"]["exitCode"] == 137


async def test_scratch_files_lie_where_they_should(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    pod = make_pod(container(python("import time; time.sleep(60)")))
    async with Run(pod, tmp_path, scratch_folder=scratch) as run:
        await run.until(lambda: run.condition("Ready") == "True")
        assert len(list(scratch.glob("octavo-pod-*"))) == 1
    assert not list(scratch.iterdir())
