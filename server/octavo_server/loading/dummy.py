"""Random weights for speed runs, where values do not matter but zeros would (they save power)."""

from __future__ import annotations

import torch

from octavo_server.errors import InvalidSettings
from octavo_server.models.causal_lm import CausalLM

_BOUND = 1e-3
_SEEDS = 2**63


def fill_dummy(model: CausalLM, seed: int) -> None:
    """Every weight uniform in +-1e-3, never zero, the same for the same seed and device.

    Raises InvalidSettings for a seed that does not fit 64 bits.
    """
    if not -_SEEDS <= seed < _SEEDS:
        raise InvalidSettings(f"--seed {seed} does not fit a signed 64-bit integer")
    for index, (_, view) in enumerate(sorted(model.slots().items())):
        generator = torch.Generator(view.device).manual_seed((seed + index) % _SEEDS)
        view.uniform_(-_BOUND, _BOUND, generator=generator)
        # Narrow types draw few distinct values, zero among them.
        view.masked_fill_(view == 0, _BOUND / 2)
