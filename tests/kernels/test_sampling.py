from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from octavo_kernels.gumbel import gumbel_log2, gumbel_noise
from octavo_kernels.language import jit, tl

from . import oracle
from .draws import draw
from .tables import DEVICES


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_greedy_takes_the_lowest_of_equals(name: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5000)
    logits[0, [4999, 17, 4100]] = 9.0
    logits[1, 4999] = 9.0
    logits[2, :] = float("-inf")
    logits[2, 4200] = -3.0
    assert draw(name, logits, temperature=0.0) == [17, 4999, 4200]
    # The same rows beside a row that samples.
    mixed = draw(name, logits, temperature=[0.0, 0.0, 1.0])
    assert mixed == [17, 4999, 4200]


def test_noise_is_its_definition() -> None:
    keys = [(0, 0), (5, 7), (-3, 1 << 40), ((1 << 63) - 1, 2), (-(1 << 63), 0)]
    ids = torch.tensor([0, 1, 2, 999, 49151, 151935, (1 << 31) - 1], dtype=torch.int32)
    seeds, positions = (torch.tensor([key[i] for key in keys]) for i in range(2))
    actual = gumbel_noise(seeds, positions, ids)
    for row, (seed, position) in enumerate(keys):
        for column, token in enumerate(ids.tolist()):
            wanted = oracle.gumbel_noise(seed, position, token)
            assert actual[row, column].item() == pytest.approx(wanted, abs=2e-5, rel=1e-5)


@jit
def noise_kernel(out, seeds, positions, N: tl.constexpr):
    row = tl.program_id(0)
    ids = tl.arange(0, N)
    noise = gumbel_log2(tl.load(seeds + row), tl.load(positions + row), ids)
    tl.store(out + row * N + ids, noise)


def test_noise_is_the_same_in_triton() -> None:
    device = DEVICES["triton"]
    seeds = torch.tensor([0, 12345, -1, 1 << 62], device=device)
    positions = torch.tensor([0, 1, 77, 1 << 33], device=device)
    out = torch.empty(4, 4096, device=device)
    noise_kernel[(4,)](out, seeds, positions, N=4096)
    ids = torch.arange(4096, dtype=torch.int32)
    wanted = gumbel_noise(seeds.cpu(), positions.cpu(), ids)
    actual = (out.cpu() - math.log2(math.log(2))) * math.log(2)
    torch.testing.assert_close(actual, wanted, atol=5e-5, rtol=5e-5)


def test_the_largest_and_smallest_noises_are_exact() -> None:
    """Of a million ids, those whose noise decides most draws; float32's 1 - v would round them."""
    device, count = DEVICES["triton"], 1 << 20
    seed, position = torch.tensor([3], device=device), torch.tensor([8], device=device)
    out = torch.empty(1, count, device=device)
    noise_kernel[(1,)](out, seed, position, N=count)
    actual = (out[0].cpu().double() - math.log2(math.log(2))) * math.log(2)
    order = actual.argsort()
    for token in [*order[:40].tolist(), *order[-400:].tolist()]:
        wanted = oracle.gumbel_noise(3, 8, token)
        # The smallest: v within 2^-24 of 1, as its definition rounds it.
        error = 1e-5 if wanted > 0 else 2e-2
        assert actual[token].item() == pytest.approx(wanted, abs=error), token


def test_the_noises_tail_is_gumbels() -> None:
    ids = torch.arange(1 << 22, dtype=torch.int32)
    noise = gumbel_noise(torch.tensor([5]), torch.tensor([6]), ids)[0]
    for bound in (4.0, 8.0, 10.0, 12.0):
        wanted = -math.expm1(-math.exp(-bound)) * len(ids)
        assert abs(int((noise > bound).sum()) - wanted) < 4 * wanted**0.5


def test_noise_is_gumbel_and_uncorrelated() -> None:
    ids = torch.arange(50_000, dtype=torch.int32)
    noise = gumbel_noise(torch.tensor([1, 1, 2]), torch.tensor([1, 2, 1]), ids)
    assert noise.isfinite().all()
    for row in noise:  # mean 0.5772, variance pi^2 / 6; five standard errors
        assert abs(row.mean() - 0.5772) < 5 * (1.645 / 50_000) ** 0.5
        assert abs(row.var() - 1.645) < 5 * (1.645**2 * 4.4 / 50_000) ** 0.5
    correlation = torch.corrcoef(noise) - torch.eye(3)
    assert correlation.abs().max() < 5 / 50_000**0.5
    neighbours = torch.corrcoef(torch.stack((noise[0, :-1], noise[0, 1:])))[0, 1]
    assert abs(neighbours) < 5 / 50_000**0.5


FILTERS = [
    {"temperature": 1.0},
    {"temperature": 0.5, "top_k": 4},
    {"temperature": 1.5, "top_p": 0.7},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 0.8, "top_k": 6, "top_p": 0.8},
    {"temperature": 1.3, "top_k": 7, "top_p": 0.9, "min_p": 0.1},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 1.0, "top_k": 99, "top_p": 0.999},
]


def expected_shares(logits: list[float], filters: dict[str, float]) -> dict[int, float]:
    values = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, **filters}
    kept = oracle.kept_ids(
        logits, values["temperature"], int(values["top_k"]), values["top_p"], values["min_p"]
    )
    weights = torch.tensor([logits[i] for i in kept]).div(values["temperature"]).softmax(0)
    return dict(zip(kept, weights.tolist(), strict=True))


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_draws_follow_the_filtered_distribution(filters: dict[str, float]) -> None:
    """Torch: exactly the surviving ids are drawn, in their shares (chi-square, fixed seed)."""
    logits = torch.tensor([1.0, 2.5, 2.5, float("-inf"), 0.0, 1.7, 2.1, -0.4, 0.9, 3.0])
    draws = 2000
    counts = Counter(draw("torch", logits.expand(draws, -1), **filters))
    shares = expected_shares(logits.tolist(), filters)
    assert set(counts) == set(shares)
    chi_square = sum(
        (counts[i] - draws * share) ** 2 / (draws * share) for i, share in shares.items()
    )
    assert chi_square < 30  # 9 degrees of freedom or fewer: p < 0.0005 by chance


def test_triton_draws_what_torch_draws() -> None:
    """Same logits, same noise, same filters: the same ids, over a vocabulary of two passes."""
    torch.manual_seed(0)
    rows = [{"top_k": 0, "top_p": 1.0, "min_p": 0.0, **filters} for filters in FILTERS]
    rows += [{"temperature": 0.0, "top_k": 3, "top_p": 0.5, "min_p": 0.3}]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    logits = torch.randn(len(rows), 5000) * 4
    logits[:, 4500:4600] = float("-inf")
    logits[1, :] = logits[1].round()  # many equal logits
    logits[5, :4996] = float("-inf")  # fewer finite logits than top_k
    assert draw("triton", logits, **columns) == draw("torch", logits, **columns)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_in_the_models_dtype(dtype: torch.dtype) -> None:
    """Both read them as they are; 16 bits make many equal logits."""
    torch.manual_seed(1)
    logits = (torch.randn(4, 5000) * 3).to(dtype)
    columns = {
        "temperature": [0.0, 0.9, 0.9, 1.1],
        "top_k": [0, 0, 30, 0],
        "top_p": [1.0, 1.0, 0.9, 0.8],
    }
    wanted = draw("torch", logits, **columns)
    assert draw("triton", logits, positions_dtype=torch.int32, **columns) == wanted
    assert wanted[0] == int((logits[0] == logits[0].max()).nonzero()[0])


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_rows_without_a_finite_logit_still_get_some_id(name: str) -> None:
    logits = torch.full((3, 300), float("-inf"))
    logits[1, 7] = float("nan")
    logits[2, 5] = 1.0
    drawn = draw(name, logits, top_k=[0, 3, 3], top_p=[0.5, 1.0, 0.9])
    assert drawn[2] == 5
    assert all(0 <= token < 300 for token in drawn)


@pytest.mark.parametrize("filters", FILTERS[3:6], ids=str)
def test_large_rows_keep_the_exact_set(filters: dict[str, float]) -> None:
    """A vocabulary of 49,152: nearly flat logits need the whole order, peaked ones a few."""
    torch.manual_seed(0)
    for spread in (0.1, 3.0):
        logits = torch.randn(49_152) * spread
        kept = expected_shares(logits.tolist(), filters).keys()
        drawn = set(draw("torch", logits.expand(40, -1), **filters))
        assert drawn <= kept


def test_flat_top_p_looks_past_the_first_candidates() -> None:
    logits = torch.linspace(1.0, 0.0, 20_000)
    kept = expected_shares(logits.tolist(), {"temperature": 1.0, "top_p": 0.5}).keys()
    drawn = draw("torch", logits.expand(300, -1), top_p=0.5)
    assert set(drawn) <= kept
    assert max(drawn) > 0.9 * len(kept)  # ids are in order of their logits here


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_a_row_does_not_depend_on_its_batch(name: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 300)
    columns = {
        "temperature": [1.0, 0.0, 0.7, 1.2, 1.0, 0.9],
        "top_k": [0, 0, 20, 0, 5, 0],
        "top_p": [1.0, 1.0, 0.9, 0.5, 1.0, 1.0],
        "min_p": [0.0, 0.0, 0.0, 0.0, 0.0, 0.1],
        "seeds": [3, 1, 4, 1, 5, 9],
        "positions": [10, 20, 30, 40, 50, 60],
    }
    together = draw(name, logits, **columns)
    for row in range(6):
        alone = {key: [values[row]] for key, values in columns.items()}
        assert draw(name, logits[row : row + 1], **alone) == [together[row]]
    shuffled = [4, 2, 0, 5, 1, 3]
    again = {key: [values[i] for i in shuffled] for key, values in columns.items()}
    assert draw(name, logits[shuffled], **again) == [together[i] for i in shuffled]


def test_seed_and_position_both_matter() -> None:
    logits = torch.zeros(40, 1000)
    by_position = draw("torch", logits, seeds=1)
    by_seed = draw("torch", logits, seeds=list(range(40)), positions=[1] * 40)
    assert len(set(by_position)) > 30
    assert len(set(by_seed)) > 30
