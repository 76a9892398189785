"""The two tables of ops as tests name them, and how far each dtype may be from the oracle."""

from __future__ import annotations

import torch

from octavo_kernels.ops import Ops, _torch_ops, _triton_ops

DEVICES = {"torch": "cpu", "triton": "cuda" if torch.cuda.is_available() else "cpu"}
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

# The interpreter truncates on the way to bfloat16 and computes garbage in a dot of it: GPU only.
NAMES_AND_DTYPES = [
    (name, dtype)
    for name in DEVICES
    for dtype in TOLERANCE
    if dtype != torch.bfloat16 or name == "torch" or torch.cuda.is_available()
]


def table(name: str) -> Ops:
    return _torch_ops() if name == "torch" else _triton_ops(interpreted=DEVICES[name] == "cpu")


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Within dtype's tolerance, absolute below 1 and relative above."""
    actual = actual.float().cpu()
    error = (actual - expected.float()).abs() / expected.float().abs().clamp(min=1)
    assert not actual.isnan().any(), "NaN in the result"
    assert error.numel() == 0 or error.max() <= TOLERANCE[dtype], f"off by {error.max():.2e}"
