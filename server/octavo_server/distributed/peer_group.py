"""The group of GPUs whose sums go through each other's memory; NCCL does what is too large for it.

The default where every GPU can write to every other one's memory; OCTAVO_ALL_REDUCE=nccl for NCCL
alone.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric
from torch import Tensor

from octavo_kernels.peer_sum import (
    WORDS,
    Peers,
    block_programs,
    sum_blocks,
    sum_words,
)
from octavo_server.distributed.torch_group import TorchGroup

MOST_RANKS = 8

# Measured on two H100s (`benchmarks/kernels/all_reduce.py`): above the first, marks cost less than
# twice the bytes; above the second, with each rank reading all parts, NCCL's rings are as fast.
_WORD_BYTES = 256 << 10
_BLOCK_BYTES = {2: 8 << 20, 4: 1 << 20}


def can_reach(size: int) -> bool:
    """Whether each of the first `size` GPUs can write to each other's memory."""
    return torch.cuda.device_count() >= size and all(
        torch.cuda.can_device_access_peer(one, other)
        for one in range(size)
        for other in range(size)
        if one != other
    )


class PeerGroup(TorchGroup):
    """As `TorchGroup`; sums of up to some MiB take one launch, what follows them included."""

    def __init__(
        self, rank: int, size: int, rendezvous: str, device: torch.device, timeout_seconds: float
    ) -> None:
        assert size <= MOST_RANKS
        super().__init__(rank, size, rendezvous, device, timeout_seconds)
        # Of no use here, and not every host has it.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        self._most_bytes = _BLOCK_BYTES.get(size, _WORD_BYTES)
        word_cap = _WORD_BYTES // 4
        programs = block_programs(self._most_bytes)
        self._held: list[Tensor] = []  # what peers write to lives as long as the group

        def shared(count: int, dtype: torch.dtype) -> Tensor:
            """int64 [ranks]: addresses of `count` zeros that every rank has made."""
            assert dist.group.WORLD is not None
            mine = symmetric.empty(count, dtype=dtype, device=device)
            mine.zero_()
            self._held.append(mine)
            handle = symmetric.rendezvous(mine, dist.group.WORLD.group_name)
            return torch.tensor(handle.buffer_ptrs, dtype=torch.int64, device=device)

        def launches(count: int) -> Tensor:
            return torch.zeros(count, dtype=torch.int32, device=device)

        self.peers = Peers(
            rank=rank,
            ranks=size,
            words=shared(2 * size * word_cap, torch.int64),
            word_cap=word_cap,
            blocks=shared(2 * size * self._most_bytes, torch.uint8),
            block_cap_bytes=self._most_bytes,
            marks=shared(size * programs, torch.int32),
            word_launches=launches(word_cap // WORDS),
            block_launches=launches(programs),
        )
        # No rank sends before all have zeroed.
        torch.cuda.synchronize(device)
        dist.barrier()

    def all_reduce_(self, x: Tensor) -> None:
        if not self._sum(x, x, add=False):
            super().all_reduce_(x)

    def add_sum_(self, residual: Tensor, partial: Tensor) -> None:
        if not self._sum(partial, residual, add=True):
            super().add_sum_(residual, partial)

    def _sum(self, part: Tensor, out: Tensor, add: bool) -> bool:
        """Whether it was small enough, and is done."""
        if part.nbytes > self._most_bytes or not (part.is_contiguous() and out.is_contiguous()):
            return False
        if part.numel() == 0:
            return True
        if part.element_size() == 2 and part.nbytes <= _WORD_BYTES and part.numel() % 2 == 0:
            sum_words(self.peers, part, out, add)
        else:
            sum_blocks(self.peers, part, out, add)
        return True
