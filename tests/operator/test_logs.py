"""The log's lines, as a process writes them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_SCRIPT = """
import logging, sys
from octavo_operator.logs import configure_logs, logging_about
configure_logs(as_json=sys.argv[1] == "json", verbose=False)
log = logging.getLogger("octavo_operator.test")
log.info("before")
with logging_about(("team-a", "llm")):
    log.warning("during %s", "it")
try:
    raise ValueError("boom")
except ValueError:
    logging.getLogger("kopf.objects").exception("a handler failed")
    log.exception("ours failed")
logging.getLogger("kopf.objects").info("chatter")
"""


def lines(form: str) -> list[str]:
    command = [sys.executable, "-c", _SCRIPT, form]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return (done.stdout + done.stderr).splitlines()


def test_json_is_one_object_a_line_and_names_the_service() -> None:
    found = [json.loads(line) for line in lines("json")]
    assert [each["message"] for each in found] == [
        "before", "during it", "a handler failed", "ours failed",
    ]  # fmt: skip
    assert (found[1]["namespace"], found[1]["inferenceservice"]) == ("team-a", "llm")
    assert "inferenceservice" not in found[0]
    assert "boom" in json.dumps(found[3])
    assert all(each["severity"] for each in found)


@pytest.mark.parametrize("text", ["before", "during it", "a handler failed", "ours failed"])
def test_text_is_for_people(text: str) -> None:
    found = lines("text")
    assert sum(text in line for line in found) == 1
    assert not any("chatter" in line for line in found)
    assert sum("Traceback" in line for line in found) == 1  # ours, not Kopf's
