"""compute-sanitizer finds nothing in any kernel, and finds what is planted.

OCTAVO_SANITIZERS names the tools ("memcheck" without it; "memcheck,racecheck,initcheck,synccheck").
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("one_launch_each.py")
TOOLS = os.environ.get("OCTAVO_SANITIZERS", "memcheck").split(",")
FOUND = 86
"""The exit code that compute-sanitizer is asked to give where it finds something."""

LIMIT_SECONDS = 150.0

needs_sanitizer = pytest.mark.skipif(
    shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not on PATH"
)


def run(command: list[str], cache: Path | None, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", **more}
    if cache is not None:
        environment["TRITON_CACHE_DIR"] = str(cache)
    return subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def watched(tool: str, *flags: str) -> list[str]:
    # Only this process: it also runs compilers, and starting those under the tool takes seconds.
    options = ["--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "20"]
    options += ["--target-processes", "application-only"]
    if tool == "memcheck":
        options += ["--padding", "4096"]  # else the driver may put the next tensor right behind
        options += ["--report-api-errors", "no"]  # torch asks for symbols that a driver may lack
    return ["compute-sanitizer", *options, sys.executable, str(SCRIPT), *flags]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Triton's cache after a run that nobody watches."""
    cache = tmp_path_factory.mktemp("kernels")
    plain = run([sys.executable, str(SCRIPT)], cache)
    assert plain.returncode == 0, plain.stdout[-3000:]
    return cache


@pytest.mark.gpu
@needs_sanitizer
@pytest.mark.timeout(2 * LIMIT_SECONDS)
@pytest.mark.parametrize("tool", TOOLS)
def test_nothing_is_found(compiled: Path, tool: str) -> None:
    ran = run(watched(tool), compiled)
    assert ran.returncode == 0, ran.stdout[-6000:]
    assert "ERROR SUMMARY: 0 errors" in ran.stdout or "RACECHECK SUMMARY: 0 hazards" in ran.stdout
    assert "launched" in ran.stdout


@pytest.mark.gpu
@needs_sanitizer
@pytest.mark.timeout(2 * LIMIT_SECONDS)
def test_a_write_past_the_cache_is_found(compiled: Path) -> None:
    ran = run(watched("memcheck", "--plant"), compiled)
    assert ran.returncode == FOUND, ran.stdout[-3000:]
    assert "Invalid __global__ write" in ran.stdout
    assert "cache_write_kernel" in ran.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="the tests above run it on the GPU")
def test_every_kernel_is_launched() -> None:
    """In the interpreter: a kernel that is added has to be added to the script as well."""
    ran = run([sys.executable, str(SCRIPT)], None, TRITON_INTERPRET="1")
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert "launched" in ran.stdout
