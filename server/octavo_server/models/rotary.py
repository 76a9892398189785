"""The table of cosines and sines that `ops.rotary` reads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from octavo_server.model_config import RopeConfig


def cos_sin_table(rope: RopeConfig, length: int, device: torch.device) -> Tensor:
    """float32 `[length, rotary_size]`: cos of each frequency, then sin."""
    frequencies, factor = inverse_frequencies(rope)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return (torch.cat((angles.cos(), angles.sin()), dim=1) * factor).to(device)


def inverse_frequencies(rope: RopeConfig) -> tuple[Tensor, float]:
    """float32 `[rotary_size / 2]` on the CPU, and the factor for cos and sin."""
    exponents = torch.arange(0, rope.rotary_size, 2, dtype=torch.float32) / rope.rotary_size
    plain = 1.0 / rope.theta**exponents
    if rope.frequency_factors:
        plain = plain / torch.tensor(rope.frequency_factors, dtype=torch.float32)
    if rope.scaling == "linear":
        return plain / rope.factor, 1.0
    if rope.scaling == "llama3":
        return _llama3(rope, plain), 1.0
    if rope.scaling == "yarn":
        return _yarn(rope, plain), rope.attention_factor or 0.1 * math.log(rope.factor) + 1.0
    return plain, 1.0


def _llama3(rope: RopeConfig, plain: Tensor) -> Tensor:
    """Long waves are stretched, short ones kept, those between blended."""
    turns = rope.original_max_position * plain / (2 * math.pi)
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = smooth.clamp(0.0, 1.0)
    return (1 - smooth) * plain / rope.factor + smooth * plain


def _yarn(rope: RopeConfig, plain: Tensor) -> Tensor:
    """Dimensions that turn often are kept, those that turn seldom are stretched, a ramp between."""

    def dimension(rotations: float) -> float:
        waves = math.log(rope.original_max_position / (rotations * 2 * math.pi))
        return rope.rotary_size * waves / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_size - 1)
    span = (high - low) or 0.001
    ramp = ((torch.arange(rope.rotary_size // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)
