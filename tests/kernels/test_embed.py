from __future__ import annotations

import pytest
import torch

from .tables import DEVICES, NAMES_AND_DTYPES, table


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
@pytest.mark.parametrize("width", [80, 1280])
@pytest.mark.parametrize("with_positions", [False, True])
def test_is_a_float32_sum_of_rows(
    name: str, dtype: torch.dtype, width: int, with_positions: bool
) -> None:
    torch.manual_seed(0)
    device = DEVICES[name]
    tokens, places = torch.randn(50, width).to(dtype), torch.randn(9, width).to(dtype)
    ids, positions = torch.tensor([49, 0, 7, 7]), torch.tensor([0, 8, 3, 1])
    actual = table(name).embed(
        ids.to(device), tokens.to(device), positions.to(device),
        places.to(device) if with_positions else None,
    )  # fmt: skip
    wanted = tokens[ids].float()
    if with_positions:
        wanted += places[positions].float()
    assert actual.dtype == torch.float32
    assert torch.equal(actual.cpu(), wanted)


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_no_tokens(name: str) -> None:
    rows = torch.ones(3, 64, device=DEVICES[name])
    none = torch.empty(0, dtype=torch.int64, device=DEVICES[name])
    assert table(name).embed(none, rows, none, None).shape == (0, 64)
