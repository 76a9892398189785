"""What launches keep for good on a device, made before anything that could be in its way."""

from __future__ import annotations

import torch


def make_counters(device: torch.device, count: int) -> None:
    """The counters of split attention (`count` of sequences x kv heads) and of split products.

    They are zero between launches. Made on first use otherwise; then they could lie in memory that
    a CUDA graph captured before writes to.
    """
    from . import paged_decode, skinny_linear  # late: need triton

    paged_decode.counters(device, count)
    skinny_linear.counters_on(device)
