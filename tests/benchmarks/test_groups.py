"""Groups that crash, hang or never begin: each scenario gets its word, nothing is left over."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from benchmarks.rows import groups
from benchmarks.rows.groups import run_group
from benchmarks.rows.specification import Scenario

# Does with each scenario what its name says, and starts a process first that outlives it.
SCRIPT = """
import json, os, subprocess, sys, time
names = sys.argv[sys.argv.index("--scenarios") + 1].split(",")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(f"child {child.pid}", flush=True)
if names[0] == "never":
    sys.exit(3)
def emit(**event):
    print("@row " + json.dumps(event), flush=True)
for name in names:
    emit(event="begin", scenario=name)
    if name == "hang":
        time.sleep(60)
    if name == "crash":
        os._exit(9)
    if name == "last":
        emit(event="end", scenario=name, error="broken device")
        os._exit(1)
    emit(event="sample", row="r", value=1.0)
    emit(event="end", scenario=name, error=None)
child.kill()
"""


def run(tmp_path: Path, *names: str) -> tuple[dict[str, str | None], int, str]:
    """Scenario -> error, how many samples came, the log."""
    script, log = tmp_path / "group.py", tmp_path / "logs" / "group.log"
    script.write_text(SCRIPT, encoding="utf-8")
    events: list[dict[str, Any]] = []
    scenarios = [Scenario(name, "g", 0, 1 if name == "hang" else 60) for name in names]
    run_group([sys.executable, str(script)], scenarios, log, events.append)
    ends = {e["scenario"]: e["error"] for e in events if e["event"] == "end"}
    samples = sum(event["event"] == "sample" for event in events)
    return ends, samples, log.read_text(encoding="utf-8")


def children_of(log: str) -> list[int]:
    return [int(line.split()[1]) for line in log.splitlines() if line.startswith("child ")]


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_all_scenarios_of_a_good_group_end_well(tmp_path: Path) -> None:
    ends, samples, _ = run(tmp_path, "one", "two")
    assert ends == {"one": None, "two": None}
    assert samples == 2


@pytest.mark.parametrize(
    ("name", "words"), [("hang", "over its time limit"), ("crash", "its process ended with 9")]
)
def test_the_next_scenarios_run_after_one_that_ends_its_process(
    tmp_path: Path, name: str, words: str
) -> None:
    ends, samples, log = run(tmp_path, "one", name, "two")
    assert ends["one"] is None
    assert ends["two"] is None
    assert words in (ends[name] or "")
    assert samples == 2
    assert len(children_of(log)) == 2  # a process before and one after
    deadline = time.monotonic() + 10
    while not all(map(is_gone, children_of(log))):
        assert time.monotonic() < deadline, "what a group started outlived it"
        time.sleep(0.05)


def test_a_process_that_leaves_after_a_failure_is_replaced(tmp_path: Path) -> None:
    ends, _, log = run(tmp_path, "one", "last", "two")
    assert ends == {"one": None, "last": "broken device", "two": None}
    assert len(children_of(log)) == 2


def test_a_group_without_time_left_runs_nothing(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    scenario = Scenario("late", "g", 1, 1)
    run_group(["false"], [scenario], tmp_path / "log", events.append, time.monotonic() - 1)
    assert [event["error"] for event in events] == ["not run: no time was left"]


def test_a_group_that_never_begins_fails_all_its_scenarios_at_once(tmp_path: Path) -> None:
    ends, samples, log = run(tmp_path, "never", "two")
    assert all("before it began: its process ended with 3" in (e or "") for e in ends.values())
    assert set(ends) == {"never", "two"}
    assert samples == 0
    assert len(children_of(log)) == 1


def test_a_groups_command_names_its_module_and_model(tmp_path: Path) -> None:
    folders = {"gpt2": tmp_path / "gpt2", "qwen": tmp_path / "qwen"}
    argv = groups.group_argv("offline-qwen", folders, tmp_path, ["--tiny"])
    assert argv[2:] == [
        *("benchmarks.rows.offline", "--model", "qwen"),
        *("--folder", str(tmp_path / "qwen"), "--tiny"),
    ]
    assert groups.group_argv("http-gpt2", folders, tmp_path, [])[2] == "benchmarks.rows.over_http"
