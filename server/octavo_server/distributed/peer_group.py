"""The group of two GPUs whose small sums go through each other's memory: torch's one-shot kernels.

Each rank copies its part where the other one can read it, waits for the other's mark, and adds: one
launch of some 4 us where NCCL takes 16. Chosen with OCTAVO_ALL_REDUCE=one-shot; needs peer access.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric
from torch import Tensor

from octavo_server.distributed.torch_group import TorchGroup

SIZE = 2
"""Each rank adds its own part first: with more than two, sums of one element would be rounded
differently on different ranks, which must have the same bits."""

_MOST_BYTES = 512 << 10
"""Every rank reads all of the other's bytes: larger sums are NCCL's."""

_DTYPES = (torch.bfloat16, torch.float32)
"""Those that torch's kernels add."""

_ALIGNED = 16


class PeerGroup(TorchGroup):
    """As `TorchGroup`; sums of up to `_MOST_BYTES` take one launch."""

    def __init__(
        self, rank: int, size: int, rendezvous: str, device: torch.device, timeout_seconds: float
    ) -> None:
        assert size == SIZE
        super().__init__(rank, size, rendezvous, device, timeout_seconds)
        # Of no use here, and not every host has it.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        assert dist.group.WORLD is not None
        self._name = dist.group.WORLD.group_name
        self._buffers: dict[torch.dtype, Tensor] = {}
        for dtype in _DTYPES:
            buffer = symmetric.empty(_MOST_BYTES // dtype.itemsize, dtype=dtype, device=device)
            symmetric.rendezvous(buffer, self._name)
            self._buffers[dtype] = buffer

    def all_reduce_(self, x: Tensor) -> None:
        if self._fits(x):
            x.copy_(self._sum(x))
        else:
            super().all_reduce_(x)

    def add_sum_(self, residual: Tensor, partial: Tensor) -> None:
        if self._fits(partial):
            residual += self._sum(partial)
        else:
            super().add_sum_(residual, partial)

    def _fits(self, x: Tensor) -> bool:
        return x.dtype in self._buffers and x.nbytes <= _MOST_BYTES and x.nbytes % _ALIGNED == 0

    def _sum(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        buffer = self._buffers[x.dtype][: x.numel()].view(x.shape)
        total: Tensor = torch.ops.symm_mem.one_shot_all_reduce_copy(buffer, x, "sum", self._name)
        return total
