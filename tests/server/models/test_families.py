"""Our models' logits against transformers' for each family, through prefill, chunks and decode."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.server.models.step import Rows
from tests.server.tiny_models import FAMILIES, VOCAB_SIZE, make_tiny, tiny_model

from octavo_kernels.ops import select_ops
from octavo_server.config import EngineConfig
from octavo_server.loading.describe import read_model_config
from octavo_server.loading.load import load_model
from octavo_server.loading.source import resolve_source
from octavo_server.memory_plan import weight_bytes
from octavo_server.models.causal_lm import CausalLM

_LENGTHS = (37, 5, 50)


def load(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> CausalLM:
    settings = EngineConfig(model=str(folder))
    source = resolve_source(settings, print)
    return load_model(
        source,
        read_model_config(source),
        settings,
        ops=select_ops(device),
        device=torch.device(device),
        dtype=dtype,
        progress=print,
    )


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCAB_SIZE, (n,), generator=generator).tolist() for n in _LENGTHS]


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


def test_float32_logits_are_those_of_transformers(family: str, device: str, tmp_path: Path) -> None:
    model = load(make_tiny(family, tmp_path), device=device)
    rows = Rows(model, len(_LENGTHS), device=device)
    theirs = tiny_model(family)
    sequences = prompts()
    with torch.inference_mode():
        expected = [theirs(torch.tensor([ids])).logits[0] for ids in sequences]
    # Whole prompt but the last three tokens in one step for row 0, in chunks of 7 for the others.
    got: list[list[torch.Tensor]] = [[] for _ in sequences]
    done = [0] * len(sequences)
    while any(done[row] < len(ids) for row, ids in enumerate(sequences)):
        chunks = []
        for row, ids in enumerate(sequences):
            rest = len(ids) - done[row]
            size = 1 if rest <= 3 else rest - 3 if row == 0 else min(7, rest - 3)
            chunks.append(ids[done[row] : done[row] + size])
            done[row] += len(chunks[-1])
        for row, logits in enumerate(rows.step(chunks)):
            got[row].append(logits)
    for row, logits in enumerate(expected):
        torch.testing.assert_close(torch.cat(got[row]), logits, atol=1e-4, rtol=1e-4)


def test_bfloat16_stays_close(family: str, device: str, tmp_path: Path) -> None:
    model = load(make_tiny(family, tmp_path), torch.bfloat16, device)
    rows = Rows(model, 1, torch.bfloat16, device)
    ids = prompts()[0]
    with torch.inference_mode():
        expected = tiny_model(family)(torch.tensor([ids])).logits[0]
    (got,) = rows.step([ids])
    assert got.dtype == torch.float32
    error = (got - expected).norm() / expected.norm()
    assert error < 0.05, f"relative error {error:.3f}"


def test_greedy_output_is_varied_and_clear_of_noise(family: str) -> None:
    """What makes these models fit for comparing greedy output."""
    ids = prompts()[0][:8]
    theirs = tiny_model(family)
    margins = []
    with torch.inference_mode():
        for _ in range(32):
            best = theirs(torch.tensor([ids])).logits[0, -1].topk(2)
            margins.append(float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
    assert len(set(ids[8:])) > 8
    assert min(margins) > 1e-4


def test_the_memory_plan_counts_the_weights(family: str, tmp_path: Path) -> None:
    model = load(make_tiny(family, tmp_path))
    theirs = tiny_model(family)
    assert weight_bytes(model.config, "bfloat16") == 2 * sum(w.numel() for w in theirs.parameters())


def test_the_same_seed_gives_the_same_weights() -> None:
    one, two, other = (tiny_model("llama2", seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
