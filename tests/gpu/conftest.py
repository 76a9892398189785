"""Collected before tests/kernels, and its tests import triton (through transformers): without
a GPU the interpreter must be chosen here already. See tests/kernels/conftest.py."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
