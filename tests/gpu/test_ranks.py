"""Two GPUs of one host compute what one does, over NCCL: every family, eager and in a graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.server.distributed.rank_process import LENGTHS, run_all
from tests.server.distributed.together import Results, make_models, run_ranks

from octavo_server.distributed.group import SOLO

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.xdist_group("two GPUs"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def alone(models: Path) -> Results:
    return run_all(models, SOLO, torch.device("cuda", 0))


@pytest.fixture(scope="module", params=["nccl", "peers"])
def together(request: pytest.FixtureRequest, models: Path) -> list[Results]:
    """Also checks sums of all sizes, launched and in a graph (`rank_process.check_sums`)."""
    for old in models.glob("meet-*"):
        old.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_ALL_REDUCE", request.param)
        return run_ranks(models, 2, "cuda")


def test_float32_tokens_are_those_of_one_gpu(alone: Results, together: list[Results]) -> None:
    assert not torch.backends.cuda.matmul.allow_tf32
    for found in together:
        for name in sorted(set(found) - {"llama3-bfloat16"}):
            one, many = alone[name], found[name]
            torch.testing.assert_close(
                many["logits"], one["logits"], atol=1e-3, rtol=1e-3, msg=name
            )
            assert many["tokens"] == one["tokens"], name
            assert many["drawn"] == one["drawn"], name


def test_bfloat16_stays_close(alone: Results, together: list[Results]) -> None:
    prompts = sum(LENGTHS)  # what follows them may differ
    exact = alone["llama3"]["logits"][:prompts]
    for found in (alone, together[0]):
        logits = found["llama3-bfloat16"]["logits"][:prompts]
        assert (logits - exact).norm() / exact.norm() < 0.05


def test_ranks_have_the_same_bits(together: list[Results]) -> None:
    first, second = together
    for name, mine in first.items():
        assert torch.equal(mine["residual"], second[name]["residual"]), name
        assert torch.equal(mine["logits"], second[name]["logits"]), name
