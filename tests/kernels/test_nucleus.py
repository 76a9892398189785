"""Draws from nuclei that hold most of a vocabulary: rejected and accepted, never searched for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from octavo_kernels import sampling
from octavo_kernels.gumbel import gumbel_noise

from . import oracle
from .draws import draw

VOCAB = 12_000


class Watched:
    """settle_kernel, and what was drawn before and after it."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.asked: list[bool] = []
        self.changed: list[bool] = []

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
        def launch(out: torch.Tensor, *arguments: Any, **options: Any) -> None:
            before = out.clone()
            self.asked = (arguments[1][: len(out)] > 0).tolist()
            self.kernel[grid](out, *arguments, **options)
            self.changed = (out != before).tolist()

        return launch


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    found = Watched(sampling.settle_kernel)
    monkeypatch.setattr(sampling, "settle_kernel", found)
    return found


def by_definition(logits: torch.Tensor, **asked: Any) -> list[int]:
    """The best noisy logit of the ids the oracle keeps, in float64."""
    drawn = []
    for row, values in enumerate(logits.double()):
        position = torch.tensor([row])
        noise = gumbel_noise(torch.tensor([0]), position, torch.arange(VOCAB, dtype=torch.int32))
        kept = oracle.kept_ids(
            values.tolist(),
            asked["temperature"],
            asked.get("top_k", 0),
            asked["top_p"],
            asked.get("min_p", 0.0),
        )
        ids = torch.tensor(sorted(kept))
        scores = values[ids] / asked["temperature"] + noise[0, ids].double()
        drawn.append(int(ids[scores.argmax()]))
    return drawn


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 1 - 1e-6])
def test_a_flat_row_draws_what_is_defined(
    watched: Watched, top_p: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(6, VOCAB) * 0.3).to(dtype)
    wanted = by_definition(logits, temperature=1.0, top_p=top_p)
    assert draw("triton", logits, top_p=top_p) == wanted
    assert all(watched.asked)
    if top_p != 0.95:  # the first try fails with probability 1 - top_p
        assert any(watched.changed) == (top_p <= 0.5)


def test_flat_rows_of_every_kind(watched: Watched) -> None:
    """Ties, banned ids, NaN, min-p beside top-p and alone, top-k beside top-p, cold and hot."""
    torch.manual_seed(1)
    rows = [
        {"top_p": 0.6},
        {"top_p": 0.6},
        {"top_p": 0.6},
        {"top_p": 0.9, "min_p": 0.5},
        {"min_p": 0.6},
        {"top_p": 0.8, "top_k": 9_000},
        {"top_p": 0.7, "temperature": 0.05},
        {"top_p": 0.7, "temperature": 2.0},
        {"top_p": 1e-6},
        {"top_p": 0.9},
    ]
    columns = {
        name: [row.get(name, other) for row in rows]
        for name, other in {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}.items()
    }
    logits = torch.randn(len(rows), VOCAB) * 0.3
    logits[6] *= 0.05
    logits[0] = (logits[0] * 4).round() / 4  # a dozen values
    logits[1, ::2] = float("-inf")
    logits[2, 0] = 0.25
    logits[2, 1:] = 0.0  # nearly all equal
    everything = draw("triton", logits, **columns)
    assert everything == draw("torch", logits, **columns)
    assert [i for i, asked in enumerate(watched.asked) if not asked] == [5, 8]
    logits[9, 7] = float("nan")
    again = draw("triton", logits, **columns)
    assert again[:9] == everything[:9]
    assert 0 <= again[9] < VOCAB
    assert again[9] != 7


def test_a_peaked_row_needs_no_third_launch(watched: Watched) -> None:
    torch.manual_seed(2)
    logits = torch.randn(4, VOCAB) * 6
    columns = {"top_p": [0.9, 0.5, 1e-6, 0.9], "min_p": [0.0, 0.0, 0.0, 0.2]}
    assert draw("triton", logits, **columns) == draw("torch", logits, **columns)
    assert not any(watched.asked)


def test_a_nucleus_is_drawn_in_its_shares() -> None:
    """Chi-square over four levels of logits, of which top-p leaves three; ids of a level alike."""
    levels = torch.tensor([0.0, -0.5, -1.0, -3.0]).repeat(500)
    draws = 200
    drawn = torch.tensor(draw("triton", levels.expand(draws, -1), top_p=0.9))
    counts = torch.stack([(drawn % 4 == level).sum() for level in range(4)])
    shares = torch.tensor([0.0, -0.5, -1.0]).softmax(0)
    assert counts[3] == 0
    assert ((counts[:3] - draws * shares) ** 2 / (draws * shares)).sum() < 14  # p < 0.001
    assert len(drawn.unique()) > 150
