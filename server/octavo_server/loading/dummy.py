"""Random weights for speed runs, where values do not matter but zeros would (they save power)."""

from __future__ import annotations

import torch

from octavo_server.models.causal_lm import CausalLM

_BOUND = 1e-3


def fill_dummy(model: CausalLM, seed: int) -> None:
    """Every weight uniform in +-1e-3, never zero, the same for the same seed and device."""
    for index, (_, view) in enumerate(sorted(model.slots().items())):
        generator = torch.Generator(view.device).manual_seed(seed + index)
        view.uniform_(-_BOUND, _BOUND, generator=generator)
        # Narrow types draw few distinct values, zero among them.
        view.masked_fill_(view == 0, _BOUND / 2)
