"""The table itself: what select_ops returns, and that the CPU path needs no triton."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from octavo_kernels.ops import select_ops

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # importing it raises ModuleNotFoundError
import torch
from octavo_kernels.ops import select_ops
ops = select_ops("cpu")
print(ops.name, ops.rms_norm(torch.ones(2, 8), torch.ones(8), 1e-5).shape[0])
try:
    select_ops("cuda")
except RuntimeError as error:
    print(error)
"""


def test_cpu_is_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCTAVO_OPS", raising=False)
    assert select_ops("cpu").name == "torch"


def test_triton_on_cpu_tensors_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_OPS", "triton")
    from octavo_kernels import language

    if language.INTERPRETED:
        assert select_ops("cpu").name == "triton"
    else:
        with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
            select_ops("cpu")


def test_cuda_is_triton() -> None:
    assert select_ops("cuda").name == "triton"


def test_unknown_device_is_named() -> None:
    with pytest.raises(ValueError, match='"tpu"'):
        select_ops("tpu")


def test_cpu_path_works_where_triton_is_absent() -> None:
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "torch 2",
        "the Triton ops need the package triton, which is not installed",
    ]
