"""RMSNorm, with the residual addition of a pre-norm transformer folded in.

y = x / sqrt(mean(x^2) + eps) * weight, over the last dimension (Zhang & Sennrich 2019).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm_torch(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor:
    if residual is not None:
        residual.add_(x)
        source = residual
    else:
        source = x
    wide = source.float()
    inverse = torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * inverse.unsqueeze(-1)).mul_(weight).to(x.dtype)
