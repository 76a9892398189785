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
    """One start of `size` processes for all models; what each rank found.

    The first that fails ends the others, which would wait for it.
    """
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables |= {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    ranks, logs = [], []
    for rank in range(size):
        logs.append(models / f"errors-{size}-{rank}")
        with logs[-1].open("w") as log:
            command = [
                sys.executable, "-m", "tests.server.distributed.rank_process",
                str(rank), str(size), str(models), f"file://{models}/meet-{size}", device,
            ]  # fmt: skip
            root = Path(__file__).parents[3]
            ranks.append(subprocess.Popen(command, cwd=root, env=variables, stderr=log))
    deadline = time.monotonic() + _SECONDS
    try:
        while None in (codes := [rank.poll() for rank in ranks]):
            if any(codes) or time.monotonic() > deadline:
                break
            time.sleep(0.05)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    wrong = [log.read_text() for code, log in zip(codes, logs, strict=True) if code]
    assert not wrong, wrong[0]
    assert codes == [0] * size, f"not done after {_SECONDS} s: {codes}"
    return [torch.load(models / f"result-{size}-{rank}.pt") for rank in range(size)]
