"""LayerNorm, with the residual addition of a pre-norm transformer folded in.

y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last dimension.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def layer_norm_torch(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor:
    if residual is not None:
        residual.add_(x)
        source = residual
    else:
        source = x
    y = F.layer_norm(source, (source.shape[-1],), weight.to(source.dtype), bias.to(source.dtype), eps)
    return y.to(x.dtype)
