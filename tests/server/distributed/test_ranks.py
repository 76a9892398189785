"""Two and four processes over gloo compute what one does: every family, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.server.distributed.rank_process import DECODE_STEPS, LENGTHS, TEMPERATURE, run_all
from tests.server.distributed.together import MODELS, Results, make_models, run_ranks

from octavo_kernels.ops import SamplingRows, select_ops
from octavo_server.distributed.group import SOLO

# One worker starts the processes.
pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def alone(models: Path) -> Results:
    return run_all(models, SOLO, torch.device("cpu"))


@pytest.fixture(scope="module", params=[2, 4])
def together(request: pytest.FixtureRequest, models: Path) -> list[Results]:
    return run_ranks(models, int(request.param), "cpu")


def in_float32(found: Results) -> Results:
    """Without the models in bfloat16, whose tokens need not be the same."""
    return {name: one for name, one in found.items() if not name.endswith("bfloat16")}


def test_logits_are_those_of_one_rank(alone: Results, together: list[Results]) -> None:
    for name, mine in in_float32(together[0]).items():
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
        for name, mine in in_float32(found).items():
            assert mine["tokens"] == alone[name]["tokens"], name
    # As the sampler has them, of logits that are whole.
    for name, found in alone.items():
        decoded = found["logits"][-3 * DECODE_STEPS :].view(DECODE_STEPS, 3, -1)
        assert decoded.argmax(-1).tolist() == found["tokens"], name


def test_drawn_tokens_are_those_of_one_rank_and_of_the_sampler(
    alone: Results, together: list[Results]
) -> None:
    for found in together:
        for name, mine in in_float32(found).items():
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


def test_bfloat16_stays_close(alone: Results, together: list[Results]) -> None:
    """Partial sums travel in bfloat16; as close to float32 as one rank is."""
    prompts = sum(LENGTHS)  # what follows them may differ
    exact = alone["llama3"]["logits"][:prompts]
    for found in (alone, together[0]):
        logits = found["llama3-bfloat16"]["logits"][:prompts]
        assert (logits - exact).norm() / exact.norm() < 0.05


def test_all_models_ran(alone: Results, together: list[Results]) -> None:
    size = len(together)
    assert set(alone) == set(MODELS)
    assert set(MODELS) - set(together[0]) == ({"smollm2"} if size == 4 else set())
    for found in together:
        assert found["gpt2"]["own"] == -(-391 // (64 * size)) * 64
