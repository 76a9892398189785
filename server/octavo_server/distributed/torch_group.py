"""The group over torch.distributed: NCCL between GPUs, gloo between processes on CPU.

Import it only where there are several ranks: torch.distributed takes long to import.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_BACKENDS = {"cuda": "nccl", "cpu": "gloo"}


def make_group(
    rank: int, size: int, rendezvous: str, device: torch.device, timeout_seconds: float
) -> TorchGroup:
    """The fastest one that these ranks can have; as `TorchGroup`."""
    if device.type == "cuda" and os.environ.get("OCTAVO_ALL_REDUCE") != "nccl":
        from octavo_server.distributed.peer_group import MOST_RANKS, PeerGroup, can_reach

        if size <= MOST_RANKS and can_reach(size):
            return PeerGroup(rank, size, rendezvous, device, timeout_seconds)
    return TorchGroup(rank, size, rendezvous, device, timeout_seconds)


class TorchGroup:
    """This process's rank of the one group that it belongs to.

    `rendezvous` is where the ranks meet: `file:///PATH` (a file that does not exist yet) or
    `tcp://127.0.0.1:PORT`. A collective that waits longer than `timeout_seconds` for its peers
    raises a RuntimeError on the CPU, and ends the process on a GPU (NCCL's watchdog).
    """

    def __init__(
        self, rank: int, size: int, rendezvous: str, device: torch.device, timeout_seconds: float
    ) -> None:
        self.rank, self.size = rank, size
        if device.type == "cpu":
            # All ranks are on this host; gloo would resolve the host's name, which a pod may lack.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            _BACKENDS[device.type],
            init_method=rendezvous,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_seconds),
            device_id=device if device.type == "cuda" else None,
        )

    def all_reduce_(self, x: Tensor) -> None:
        dist.all_reduce(x)

    def add_sum_(self, residual: Tensor, partial: Tensor) -> None:
        dist.all_reduce(partial)
        residual += partial

    def all_gather(self, x: Tensor) -> Tensor:
        rows, columns = x.shape
        gathered = x.new_empty((self.size, rows, columns))
        dist.all_gather_into_tensor(gathered.view(-1, columns), x.contiguous())
        return gathered.transpose(0, 1).reshape(rows, -1)

    def close(self) -> None:
        dist.destroy_process_group()
