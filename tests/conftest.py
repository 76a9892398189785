"""What every test shares: quiet, offline defaults, GPU skipping, and the demo model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports torch, tokenizers or huggingface_hub. Tests of the Hub point HF_ENDPOINT
# at a loopback server themselves; nothing else may reach the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_ENDPOINT", "http://127.0.0.1:9")


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `gpu` where torch sees none (and imports torch only if there are any)."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        skip = pytest.mark.skip(reason="no CUDA device")
        for item in marked:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def demo_model_path() -> Path:
    """SmolLM2-135M-Instruct's .gguf; skips where it neither lies in the cache nor can be fetched.

    In CI it must be there: `make test` fetches it first.
    """
    from examples.fetch_demo_model import FetchFailed, demo_model

    try:
        return demo_model()
    except FetchFailed as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
