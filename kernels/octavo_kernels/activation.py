"""Activations between the two halves of an MLP, computed in float32."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_mul_torch(x: Tensor) -> Tensor:
    """`[tokens, 2 * n] -> [tokens, n]`: silu(first half) * second half."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu_torch(x: Tensor) -> Tensor:
    """gelu(x) = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), elementwise."""
    return F.gelu(x, approximate="tanh")
