"""The group of GPUs whose sums go through each other's memory; the rest is NCCL's.

The default where every GPU can write to every other one's memory; OCTAVO_ALL_REDUCE=nccl for NCCL
alone.
"""

from __future__ import annotations

import logging
import os

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric
from torch import Tensor

from octavo_kernels.peer_sum import (
    PROGRAMS,
    WORDS,
    Peers,
    blocks_of,
    sum_blocks,
    sum_words,
)
from octavo_server.distributed.torch_group import TorchGroup

logger = logging.getLogger(__name__)

MOST_RANKS = 8

# Measured on two H100s (`benchmarks/kernels/all_reduce.py`): above this, marks cost less than twice
# the bytes.
_WORD_BYTES = 256 << 10

# What an inbox holds from each rank; two ranks' larger sums go piece by piece. More than two send
# every part to all, where NCCL's rings send each twice: above this they are faster.
_BLOCK_BYTES = {2: 16 << 20}
_BLOCK_BYTES_OF_MORE = 1 << 20


def can_reach(size: int) -> bool:
    """Whether each of the first `size` GPUs can write to each other's memory."""
    return torch.cuda.device_count() >= size and all(
        torch.cuda.can_device_access_peer(one, other)
        for one in range(size)
        for other in range(size)
        if one != other
    )


class PeerGroup(TorchGroup):
    """As `TorchGroup`; sums take one launch for 16 MiB, the addition to the residual included.

    Where the ranks cannot share memory after all (a sandbox that lets them pass no descriptors),
    a warning says so and NCCL does everything.
    """

    def __init__(
        self, rank: int, size: int, rendezvous: str, device: torch.device, timeout_seconds: float
    ) -> None:
        assert size <= MOST_RANKS
        super().__init__(rank, size, rendezvous, device, timeout_seconds)
        self._most_bytes = _BLOCK_BYTES.get(size, _BLOCK_BYTES_OF_MORE)
        self._held: list[Tensor] = []  # what peers write to lives as long as the group
        self.peers: Peers | None = None
        try:
            met = self._meet(device)
        except RuntimeError as error:
            met = None
            cause = str(error).partition("\n")[0]
            logger.warning("ranks cannot share the GPUs' memory, NCCL does all sums: %s", cause)
        # Also: no rank sends before all have zeroed.
        torch.cuda.synchronize(device)
        all_met = torch.tensor(met is not None, dtype=torch.int32, device=device)
        dist.all_reduce(all_met, op=dist.ReduceOp.MIN)
        if all_met.item():
            self.peers = met

    def _meet(self, device: torch.device) -> Peers:
        # Of no use here, and not every host has it.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        size, word_cap = self.size, _WORD_BYTES // 4

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

        return Peers(
            rank=self.rank,
            ranks=size,
            words=shared(2 * size * word_cap, torch.int64),
            word_cap=word_cap,
            blocks=shared(2 * size * self._most_bytes, torch.uint8),
            block_cap_bytes=self._most_bytes,
            marks=shared(size * blocks_of(self._most_bytes), torch.int32),
            word_launches=launches(word_cap // WORDS),
            block_launches=launches(PROGRAMS),
        )

    def all_reduce_(self, x: Tensor) -> None:
        if not self._sum(x, x, add=False):
            super().all_reduce_(x)

    def add_sum_(self, residual: Tensor, partial: Tensor) -> None:
        if not self._sum(partial, residual, add=True):
            super().add_sum_(residual, partial)

    def _sum(self, part: Tensor, out: Tensor, add: bool) -> bool:
        """Whether it is of a kind that goes this way, and is done."""
        if self.peers is None or not (part.is_contiguous() and out.is_contiguous()):
            return False
        if part.numel() == 0:
            return True
        if part.element_size() == 2 and part.nbytes <= _WORD_BYTES and part.numel() % 2 == 0:
            sum_words(self.peers, part, out, add)
            return True
        if part.nbytes > self._most_bytes and self.size > 2:
            return False
        most = self._most_bytes // part.element_size()
        part, out = part.view(-1), out.view(-1)
        for first in range(0, len(part), most):
            sum_blocks(self.peers, part[first : first + most], out[first : first + most], add)
        return True
