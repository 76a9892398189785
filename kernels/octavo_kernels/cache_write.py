"""Scatter this step's keys and values into their pages."""

from __future__ import annotations

import torch
from torch import Tensor


def cache_write_torch(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    _, kv_heads, block_size, head_size = key_cache.shape
    if slots.numel() == 0:
        return
    if int(slots.min()) < 0:  # padding; reading one number costs nothing on CPU
        keep = slots >= 0
        key, value, slots = key[keep], value[keep], slots[keep]
    block = slots // block_size
    first = block * (kv_heads * block_size) + (slots - block * block_size)  # row of head 0
    rows = first.unsqueeze(1) + torch.arange(0, kv_heads * block_size, block_size)
    rows = rows.view(-1)  # [tokens * kv_heads], rows of the cache seen as [.., head_size]
    key_cache.view(-1, head_size).index_copy_(0, rows, key.reshape(-1, head_size))
    value_cache.view(-1, head_size).index_copy_(0, rows, value.reshape(-1, head_size))
