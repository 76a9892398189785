"""Warnings stand beside the lines of a start in the same form; seen on a real process' stderr."""

from __future__ import annotations

import re
import subprocess
import sys

SCRIPT = """
import logging, sys
from octavo_server import log_lines
print(log_lines.stamped("loading"), file=sys.stderr)
log_lines.install("engine")
logging.info("news")
logging.warning("odd: %s", 1)
try:
    1 / 0
except ZeroDivisionError:
    logging.exception("it failed")
"""


def test_all_lines_agree() -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}{SCRIPT}"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = run.stderr.splitlines()
    texts = ["loading", "engine: news", "engine: warning: odd: 1", "engine: error: it failed"]
    for line, text in zip(lines, texts, strict=False):
        assert re.fullmatch(r"\[ *\d+\.\d s\] " + re.escape(text), line), run.stderr
    assert lines[-1] == "ZeroDivisionError: division by zero"
