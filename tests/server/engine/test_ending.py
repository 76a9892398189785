"""Every way to end has words: who reports a death must not stumble over it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from octavo_server.engine.ending import how_it_ended

UNNAMED = signal.SIGRTMIN + 6


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit(3)", "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", "signal SIGKILL"),
        (f"import os; os.kill(os.getpid(), {UNNAMED})", f"signal {UNNAMED}"),
    ],
)
def test_a_process_s_end_in_words(code: str, words: str) -> None:
    ended = subprocess.run([sys.executable, "-c", code], check=False)
    assert how_it_ended(ended.returncode) == words
