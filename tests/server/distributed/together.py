"""Several ranks, each a process, and what each finds of the same models."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tests.server.tiny_models import make_tiny

# Name -> family, and changes to its config. Vocabularies that are no multiple of anything, also
# with ranks that have no ids; biases everywhere; key heads for fewer than all ranks; q/k norms.
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "gpt2": ("gpt2", {"vocab_size": 391}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False}),
    "llama-biased": ("llama3", {"attention_bias": True, "mlp_bias": True, "vocab_size": 389}),
    "llama3": ("llama3", {}),
    "llama3-bfloat16": ("llama3", {}),
    "llama-few-ids": ("llama2", {"vocab_size": 67}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"vocab_size": 389}),
    "smollm2": ("smollm2", {}),  # six heads: two ranks, not four
    "tinyllama": ("tinyllama", {}),  # one key head, copied to all
}
_SECONDS = 150

# Model -> what `rank_process.run` found.
Results = dict[str, dict[str, Any]]


def make_models(folder: Path) -> Path:
    for name, (family, changes) in MODELS.items():
        make_tiny(family, folder / name, **changes)
    return folder


def run_ranks(models: Path, size: int, device: str) -> list[Results]:
    """One start of `size` processes for all models; what each rank found."""
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ranks = [
        subprocess.Popen(
            [
                sys.executable, "-m", "tests.server.distributed.rank_process",
                str(rank), str(size), str(models), f"file://{models}/meet-{size}", device,
            ],
            cwd=Path(__file__).parents[3],
            env=variables | {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    deadline = time.monotonic() + _SECONDS
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=max(0.0, deadline - time.monotonic()))
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [torch.load(models / f"result-{size}-{rank}.pt") for rank in range(size)]
