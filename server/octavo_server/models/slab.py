"""One piece of a GPU's memory for all of a model's weights.

torch's allocator rounds each large tensor up to whole 2 MiB: 1.5 of 14 MiB of most of gpt2-large's
weights, 0.12 GiB in all that keys and values can have.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from octavo_server.distributed.shard import HEAD_ROWS
from octavo_server.memory_plan import DTYPE_BYTES, weight_bytes
from octavo_server.model_config import ModelConfig

ALIGNMENT = 256
"""Bytes, as torch's own tensors: more than any kernel asks for."""

_TENSORS_A_LAYER = 16


def slab_bytes(config: ModelConfig, dtype: str, ranks: int) -> int:
    """Enough for one rank's weights, the table's padding and alignment; config is the whole's."""
    padding = HEAD_ROWS * ranks * config.hidden_size * DTYPE_BYTES[dtype]
    aligned = (config.num_layers + 1) * _TENSORS_A_LAYER * ALIGNMENT
    return weight_bytes(config, dtype, ranks) + padding + aligned


class Slab:
    """Memory handed out in order, never taken back before all of it is."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._bytes = torch.empty(size, dtype=torch.uint8, device=device)
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialised, aligned; a tensor of its own where the slab is full."""
        begin = -(-self._used // ALIGNMENT) * ALIGNMENT
        end = begin + math.prod(shape) * dtype.itemsize
        if end > len(self._bytes):
            return torch.empty(shape, dtype=dtype, device=self._bytes.device)
        self._used = end
        return self._bytes[begin:end].view(dtype).view(shape)
