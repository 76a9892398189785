"""Draw ids as the engine does: rows of a batch that lie elsewhere in the table of requests."""

from __future__ import annotations

import torch

from octavo_kernels.ops import SamplingRows

from .tables import DEVICES, table


def draw(
    name: str,
    logits: torch.Tensor,
    *,
    temperature: float | list[float] = 1.0,
    top_k: int | list[int] = 0,
    top_p: float | list[float] = 1.0,
    min_p: float | list[float] = 0.0,
    seeds: int | list[int] = 0,
    positions: list[int] | None = None,
    positions_dtype: torch.dtype = torch.int64,
) -> list[int]:
    """One id per row; a plain number counts for every row; positions default to the row's index.

    The engine's rows lie in reverse, behind a row of values that nobody asked for.
    """
    count, device = logits.shape[0], DEVICES[name]

    def column(value: float | list[float], dtype: torch.dtype, unused: float) -> torch.Tensor:
        values = value if isinstance(value, list) else [value] * count
        return torch.tensor([*values, unused][::-1], dtype=dtype, device=device)

    rows = torch.arange(count, 0, -1, dtype=torch.int32, device=device)
    state = SamplingRows(
        temperature=column(temperature, torch.float32, 9.0),
        top_k=column(top_k, torch.int32, 1),
        top_p=column(top_p, torch.float32, 0.01),
        min_p=column(min_p, torch.float32, 0.99),
        seeds=column(seeds, torch.int64, -1),
        last_tokens=torch.full((count + 1,), -7, dtype=torch.int64, device=device),
    )
    places = torch.tensor(positions or list(range(count)), dtype=positions_dtype, device=device)
    chosen = table(name).sample(logits.clone().to(device), rows, places, state)
    assert chosen.dtype == torch.int64
    assert state.last_tokens.tolist() == [-7, *chosen.tolist()[::-1]]
    return chosen.tolist()
