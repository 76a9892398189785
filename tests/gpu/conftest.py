"""Collected before tests/kernels, and its tests import triton (through transformers): without
a GPU the interpreter must be chosen here already. See tests/kernels/conftest.py."""

from __future__ import annotations

import os

import pytest
import torch

from octavo_server.rehearsal import kernels

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def no_compiling_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny engines by the hundred: each would start a process that compiles what this one launches
    anyway.
    """
    monkeypatch.setattr(kernels, "prepare", lambda *arguments: None)
