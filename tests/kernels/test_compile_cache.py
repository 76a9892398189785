"""A cache built without a GPU is the one that a start looks into.

The proof is the keys: a recording with fake tensors and Triton's own launch path give entries of
the same names. In a process of its own, because this one may have the interpreter on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from octavo_kernels.compile_cache import default_folder


@pytest.mark.timeout(120)
def test_a_recording_and_a_launch_make_the_same_entries(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    script = Path(__file__).with_name("compile_cache_routes.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["by_record"]) == found["compiled"] == 3
    assert found["by_record"] == found["by_launch"]
    assert found["with_own"] == 0
    # Moved, without the text before compilation, and from a folder beside the one written to.
    assert (found["with_shipped"], found["written"], found["made"]) == (0, [], [])


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"TRITON_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/octavo/triton"),
        ({}, "~/.cache/octavo/triton"),
    ],
)
def test_where_kernels_are_kept(environment: dict[str, str], folder: str) -> None:
    assert default_folder(environment) == Path(folder).expanduser()
