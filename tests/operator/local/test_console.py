import json
from pathlib import Path
from typing import Any

import pytest

from octavo_operator.local.console import (
    Console,
    LogFollower,
    explain_failure,
    read_message,
    state_word,
)
from octavo_operator.local.statuses import ContainerState, Ended, PodState, pod_status


@pytest.mark.parametrize(
    ("message", "result"),
    [
        (json.dumps({"reason": "ModelNotFound", "message": "no x"}), ("ModelNotFound", "no x")),
        ("noise\n" + json.dumps({"reason": "R", "message": "m"}) + "\n", ("R", "m")),
        ("Traceback\nValueError: bad", ("Error", "exited with 3: ValueError: bad")),
        ("", ("Error", "exited with 3")),
        ("[1]", ("Error", "exited with 3: [1]")),
        ('{"reason": "R"}', ("Error", 'exited with 3: {"reason": "R"}')),
    ],
)
def test_messages(message: str, result: tuple[str, str]) -> None:
    assert read_message({"exitCode": 3, "message": message}) == result


def status(*, init: bool = False, **fields: Any) -> dict[str, Any]:
    one = ContainerState(name="main", image="i", **fields)
    inits = [ContainerState(name="i", image="i", started_at=1.0)] if init else []
    pod = {"metadata": {"name": "p"}, "spec": {}}
    return pod_status(PodState(pod=pod, start_time=0, containers=[one], init=inits), {}, 0)


ENDED = Ended(exit_code=1, started_at=0, finished_at=1, container_id="octavo://1")


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (status(), "Starting"),
        (status(init=True), "Init:0/1"),
        (status(started_at=1.0), "Loading"),
        (status(started_at=1.0, started=True), "NotReady"),
        (status(started_at=1.0, started=True, ready=True), "Ready"),
        (status(ended=ENDED), "Error"),
        (status(last=ENDED, waiting_reason="CrashLoopBackOff"), "CrashLoopBackOff"),
    ],
)
def test_words(given: dict[str, Any], word: str) -> None:
    assert state_word(given) == word


def test_a_failure_is_known_by_its_run() -> None:
    assert explain_failure(status()) is None
    failure = explain_failure(status(last=ENDED, started_at=1.0))
    assert failure is not None
    assert (failure.container_id, failure.reason) == ("octavo://1", "Error")


def test_console_says_each_thing_once() -> None:
    lines: list[str] = []
    console = Console(["pod-0"], lines.append)
    for _ in range(2):
        console.status("pod-0", status(started_at=1.0), "http://x")
        console.event("pod-0", "Unhealthy", "Startup probe failed: refused")
        console.event("pod-0", "FailedMount", "no secret")
    console.status("pod-0", status(started_at=1.0, started=True, ready=True), "http://x")
    console.event("pod-0", "Unhealthy", "Liveness probe failed: 500")
    console.event("pod-0", "Killing", "Stopping container main")
    console.stopping()
    console.event("pod-0", "Unhealthy", "Readiness probe failed: refused")
    assert [line.split() for line in lines] == [
        ["POD", "STATUS", "RESTARTS", "SECONDS", "URL"],
        ["pod-0", "Loading", "0", "0.0"],
        ["pod-0", "event:", "FailedMount:", "no", "secret"],
        ["pod-0", "Ready", "0", "0.0", "http://x"],
        ["pod-0", "event:", "Unhealthy:", "Liveness", "probe", "failed:", "500"],
        ["stopping", "once", "running", "requests", "have", "ended;", "Ctrl-C", "again", "kills"],
    ]


def test_logs_are_followed_by_line(tmp_path: Path) -> None:
    (tmp_path / "main").mkdir()
    file = tmp_path / "main" / "0.log"
    follower = LogFollower(tmp_path)
    file.write_text("one\ntw")
    assert follower.lines() == ["one"]
    file.write_text("one\ntwo\nthree")
    (tmp_path / "main" / "10.log").write_text("ten\n")
    (tmp_path / "main" / "9.log").write_text("nine\n")
    assert follower.lines() == ["two", "nine", "ten"]
    assert follower.lines(final=True) == ["three"]


def test_other_files_and_runs_of_before_are_not_shown(tmp_path: Path) -> None:
    folder = tmp_path / "main"
    folder.mkdir()
    (folder / "0.log").write_text("of yesterday\n")
    (folder / "1.log").write_text("of yesterday\n")
    (folder / "old.log").write_text("not ours\n")
    follower = LogFollower(tmp_path)
    assert follower.lines() == []
    assert [each.name for each in folder.iterdir()] == ["old.log"]
    (folder / "0.log").write_text("of today\n")
    assert follower.lines() == ["of today"]
