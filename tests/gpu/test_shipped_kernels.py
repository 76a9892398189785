"""A start with a folder that `octavo compile-kernels` made without a GPU compiles nothing.

The folder is made here, with the GPU hidden; OCTAVO_TEST_KERNELS names a further one, made on
another machine (qwen3-0.6b's config of benchmarks/rows/workloads.py, --dtype bfloat16, the same
Python: Triton's keys hold its own binary, which differs from one Python version to the next).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.rows.workloads import model as workload

SCRIPT = Path(__file__).with_name("shipped_start.py")
ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 10 << 20
"""Of one model's kernels: small enough for an image's layer that nobody notices."""

on_gpu_alone = [pytest.mark.gpu, pytest.mark.alone, pytest.mark.xdist_group("card")]


def started(model: Path, cache: Path, shipped: Path | None, *flags: str) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "OCTAVO_KERNELS": str(shipped or "")}
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(model), *flags],
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    print(json.dumps({**found, "compiled": len(found["compiled"])}))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    return workload("qwen", tiny=not torch.cuda.is_available()).write(folder, folder)


@pytest.fixture(scope="module", params=["made here", "carried"])
def shipped(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param == "carried":
        if stated := os.environ.get("OCTAVO_TEST_KERNELS"):
            return Path(stated)
        pytest.skip("OCTAVO_TEST_KERNELS names no folder")
    folder = tmp_path_factory.mktemp("shipped")
    sources = [str(ROOT / name) for name in ("server", "kernels", "operator")]
    path = os.pathsep.join([*sources, os.environ.get("PYTHONPATH", "")])
    made = subprocess.run(
        [sys.executable, "-m", "octavo_server.cli", "compile-kernels", str(model),
         "--dtype", "bfloat16", "--output", str(folder)],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-3000:]
    print(made.stdout)
    return folder


class TestOnACardOfItsOwn:
    pytestmark = on_gpu_alone

    def test_nothing_is_compiled(self, model: Path, shipped: Path, tmp_path: Path) -> None:
        size = sum(path.stat().st_size for path in shipped.rglob("*") if path.is_file())
        assert size < MOST_BYTES
        found = started(model, tmp_path / "empty", shipped)
        assert found["compiled"] == [], f"keys of this machine: {found['fingerprint']}"
        assert found["from_elsewhere"] == 0
        assert found["from_shipped"] >= 20
        assert not found["background"], "the mark of the build was not found"
        assert found["built"] == 0

    def test_without_the_folder_it_is(self, model: Path, tmp_path: Path) -> None:
        """What the test above counts is not always nothing."""
        found = started(model, tmp_path / "empty", None, "--eager")
        assert len(found["compiled"]) >= 8
        assert found["from_shipped"] == 0
        assert found["background"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the tests above do the same on the GPU")
def test_the_process_of_these_tests_works(model: Path, tmp_path: Path) -> None:
    """Without a GPU nothing is launched, so nothing is compiled either."""
    found = started(model, tmp_path / "empty", None)
    assert found["compiled"] == []
    assert found["device"] == "cpu"
    assert found["ready_seconds"] > 0
