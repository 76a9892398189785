"""Draws over slices of a vocabulary are the draws over all of it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_kernels.ops import SamplingRows
from octavo_kernels.slices import best_of_all_torch, candidates_of

from .tables import DEVICES, table

_VALUES = st.floats(width=32, allow_nan=False)


def state_of(temperatures: list[float], device: str) -> SamplingRows:
    count = len(temperatures)
    return SamplingRows(
        temperature=torch.tensor(temperatures, device=device),
        top_k=torch.zeros(count, dtype=torch.int32, device=device),
        top_p=torch.ones(count, device=device),
        min_p=torch.zeros(count, device=device),
        seeds=torch.arange(7, 7 + count, device=device),
        last_tokens=torch.full((count,), -5, dtype=torch.int64, device=device),
    )


def by_slices(
    name: str, logits: torch.Tensor, widths: list[int], state: SamplingRows, rows: torch.Tensor
) -> torch.Tensor:
    ops, positions = table(name), torch.arange(len(rows), device=logits.device)
    first, found = 0, []
    for width in widths:
        part = torch.full((len(logits), width), -math.inf, dtype=logits.dtype, device=logits.device)
        there = logits[:, first : first + width]
        part[:, : there.shape[1]] = there
        found.append(ops.best_of_slice(part, rows, positions, state, first))
        first += width
    return ops.best_of_all(torch.stack(found), rows, state)


@pytest.mark.parametrize("name", sorted(DEVICES))
@pytest.mark.parametrize("widths", [[1536, 1536], [768] * 4, [2944, 64, 64, 64]])
def test_slices_draw_what_one_device_draws(name: str, widths: list[int]) -> None:
    """Vocabulary of 2,900: the last ranks' slices end past it, or hold none of its ids."""
    device = DEVICES[name]
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(6, 2900, generator=generator).mul_(2).to(device)
    logits[1] = logits[1].round()  # ties between slices
    temperatures = [0.0, 0.0, 1.0, 0.7, 2.5, 1e-6, 9.0]
    # Not the rows in order, and one that is not drawn.
    rows = torch.tensor([0, 1, 2, 3, 6, 5], dtype=torch.int32, device=device)
    sliced, whole = state_of(temperatures, device), state_of(temperatures, device)
    found = by_slices(name, logits, widths, sliced, rows)
    expected = table(name).sample(logits, rows, torch.arange(6, device=device), whole)
    assert found.tolist() == expected.tolist()
    assert sliced.last_tokens.tolist() == whole.last_tokens.tolist()
    assert sliced.last_tokens[4] == -5


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_ranks_agree_on_an_id_whatever_the_logits_are(name: str) -> None:
    device = DEVICES[name]
    logits = torch.zeros(4, 128, device=device)
    logits[0] = -math.inf
    logits[1] = math.nan
    logits[2, 100] = math.inf
    logits[3, :64] = -math.inf
    state = state_of([0.0, 0.0, 0.0, 1.0], device)
    rows = torch.arange(4, dtype=torch.int32, device=device)
    found = by_slices(name, logits, [64, 64], state, rows).tolist()
    assert found[0] == 0 and found[2] == 100 and found[3] >= 64
    assert 0 <= found[1] < 128


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(_VALUES, st.integers(0, 2**31 - 1)), min_size=2, max_size=8))
def test_candidates_compare_as_score_then_lowest_id(found: list[tuple[float, int]]) -> None:
    packed = candidates_of(
        torch.tensor([score for score, _ in found], dtype=torch.float32),
        torch.tensor([token_id for _, token_id in found]),
    )
    expected = max(found, key=lambda pair: (pair[0], -pair[1]))
    state, rows = state_of([0.0], "cpu"), torch.zeros(1, dtype=torch.int32)
    assert best_of_all_torch(packed[:, None], rows, state).tolist() == [expected[1]]


def test_zeros_are_equal_and_infinities_are_ends() -> None:
    values = torch.tensor([-math.inf, -0.0, 0.0, 1e-45, math.inf])
    packed = candidates_of(values, torch.tensor([9, 9, 9, 9, 9])).tolist()
    assert packed[1] == packed[2]
    assert packed[0] < packed[1] < packed[3] < packed[4]
