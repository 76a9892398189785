"""Two and four processes over gloo compute what one does: every family, in float32."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.server.distributed.rank_process import DECODE_STEPS, TEMPERATURE, run_all
from tests.server.tiny_models import make_tiny

from octavo_kernels.ops import SamplingRows, select_ops
from octavo_server.distributed.group import SOLO

# Name -> family, and changes to its config. Vocabularies that are no multiple of anything, also
# with ranks that have no ids; biases everywhere; key heads for fewer than all ranks; q/k norms.
_MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "gpt2": ("gpt2", {"vocab_size": 391}),
    "gpt2-untied": ("gpt2", {"tie_word_embeddings": False}),
    "llama-biased": ("llama3", {"attention_bias": True, "mlp_bias": True, "vocab_size": 389}),
    "llama-few-ids": ("llama2", {"vocab_size": 67}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"vocab_size": 389}),
    "smollm2": ("smollm2", {}),  # six heads: two ranks, not four
    "tinyllama": ("tinyllama", {}),  # one key head, copied to all
}
_SECONDS = 150

# One worker starts the processes.
pytestmark = pytest.mark.xdist_group("ranks")

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, (family, changes) in _MODELS.items():
        make_tiny(family, folder / name, **changes)
    return folder


@pytest.fixture(scope="module")
def alone(models: Path) -> Results:
    return run_all(models, SOLO)


@pytest.fixture(scope="module", params=[2, 4])
def together(request: pytest.FixtureRequest, models: Path) -> list[Results]:
    """What each rank found; one start of the processes for all models."""
    size = int(request.param)
    ranks = [
        subprocess.Popen(
            [
                sys.executable, "-m", "tests.server.distributed.rank_process",
                str(rank), str(size), str(models), f"file://{models}/meet-{size}",
            ],
            cwd=Path(__file__).parents[3],
            env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    deadline = time.monotonic() + _SECONDS
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=deadline - time.monotonic())
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [torch.load(models / f"result-{size}-{rank}.pt") for rank in range(size)]


def test_logits_are_those_of_one_rank(alone: Results, together: list[Results]) -> None:
    for name, mine in together[0].items():
        expected = alone[name]["logits"]
        torch.testing.assert_close(mine["logits"], expected, atol=1e-4, rtol=1e-4, msg=name)
        assert torch.equal(mine["logits"].argmax(1), expected.argmax(1)), name


def test_every_rank_has_the_same_residual_and_logits(together: list[Results]) -> None:
    """The same bits: what ranks derive from them for themselves must never differ."""
    first, *others = together
    for name, mine in first.items():
        for other in others:
            assert torch.equal(mine["residual"], other[name]["residual"]), name
            assert torch.equal(mine["logits"], other[name]["logits"]), name


def test_greedy_tokens_are_those_of_one_rank(alone: Results, together: list[Results]) -> None:
    for found in together:
        for name, mine in found.items():
            assert mine["tokens"] == alone[name]["tokens"], name
    # As the sampler has them, of logits that are whole.
    for name, found in alone.items():
        decoded = found["logits"][-3 * DECODE_STEPS :].view(DECODE_STEPS, 3, -1)
        assert decoded.argmax(-1).tolist() == found["tokens"], name


def test_drawn_tokens_are_those_of_one_rank_and_of_the_sampler(
    alone: Results, together: list[Results]
) -> None:
    for found in together:
        for name, mine in found.items():
            assert mine["drawn"] == alone[name]["drawn"], name
    rows = torch.arange(3, dtype=torch.int32)
    state = SamplingRows(
        temperature=torch.full((3,), TEMPERATURE), top_k=torch.zeros(3, dtype=torch.int32),
        top_p=torch.ones(3), min_p=torch.zeros(3), seeds=torch.arange(3),
        last_tokens=torch.zeros(3, dtype=torch.int64),
    )  # fmt: skip
    for name, found in alone.items():
        for step in range(DECODE_STEPS):
            first = len(found["logits"]) - 3 * (DECODE_STEPS - step)
            logits = found["logits"][first : first + 3]
            sampled = select_ops("cpu").sample(logits, rows, torch.full((3,), step), state)
            assert sampled.tolist() == found["drawn"][step], name


def test_all_models_ran(alone: Results, together: list[Results]) -> None:
    size = len(together)
    assert set(alone) == set(_MODELS)
    assert set(_MODELS) - set(together[0]) == ({"smollm2"} if size == 4 else set())
    for found in together:
        assert found["gpt2"]["own"] == -(-391 // (64 * size)) * 64
