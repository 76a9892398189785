"""Where the Triton kernels run: on a GPU if there is one, else in Triton's interpreter.

The interpreter must be chosen before triton is first imported, so this file does it while pytest
collects, and tests/gpu/conftest.py, which comes earlier, does it too.
"""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _interpreter_is_on() -> None:
    from octavo_kernels import language

    assert language.HAS_TRITON, "these tests need triton"
    compiled = type(language.tl.sum).__name__ == "JITFunction"  # Triton's own library
    assert torch.cuda.is_available() or (language.INTERPRETED and not compiled), (
        "triton was imported before TRITON_INTERPRET=1 was set: set it in the environment"
    )
