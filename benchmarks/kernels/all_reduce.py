"""All-reduce between GPUs of one host, by bytes: NCCL, torch's kernels over peer memory, Octavo's.

    PYTHONPATH=server:kernels:operator:. python3 benchmarks/kernels/all_reduce.py [--out FILE]

Microseconds of one bfloat16 sum inside a CUDA graph of 24, the slowest rank's median. "one shot":
each rank reads all others' buffers, where the products were written; "copied": they are copied
there first; "two shot": each sums its part, then they exchange those. "add" is what follows,
`residual += sum` into float32. "words" and "blocks" (peer_sum.py) do both, and the sum alone with
"only". NVLink multicast is off: not every host has it. Needs two GPUs (or --ranks of them); 30 s.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric
import torch.multiprocessing as processes
from timing import graph_microseconds  # beside this file
from torch import Tensor

from octavo_kernels.peer_sum import sum_blocks, sum_words
from octavo_server.distributed.peer_group import PeerGroup

KIB = 1024
SIZES = [8 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB, 4096 * KIB, 8192 * KIB, 65536 * KIB]
COLUMNS = (
    "nccl", "one shot", "copied", "two shot", "add", "words", "blocks", "only words", "only blocks"
)  # fmt: skip
# One-shot reads every peer's whole buffer: past this it only loses.
ONE_SHOT_BYTES = 1024 * KIB


def variants(
    size: int, device: torch.device, group: PeerGroup
) -> dict[str, Callable[[int], object]]:
    """Name -> one launch of it, each checked against the sum that it must give."""
    count = size // 2
    ranks, rank = dist.get_world_size(), dist.get_rank()
    name = dist.group.WORLD.group_name  # type: ignore[union-attr]
    buffer = symmetric.empty(count, dtype=torch.bfloat16, device=device)
    symmetric.rendezvous(buffer, name)
    local = torch.zeros(count, dtype=torch.bfloat16, device=device)
    residual = torch.zeros(count, device=device)
    ops = torch.ops.symm_mem

    def nccl(_: int = 0) -> Tensor:
        dist.all_reduce(local)
        return local

    def copied(_: int = 0) -> Tensor:
        return ops.one_shot_all_reduce_copy(buffer, local, "sum", name)

    def one_shot(_: int = 0) -> Tensor:
        return ops.one_shot_all_reduce(buffer, "sum", name)

    def two_shot(_: int = 0) -> Tensor:
        return ops.two_shot_all_reduce_(buffer, "sum", name)

    def add(_: int = 0) -> Tensor:
        return residual.add_(local)

    peers = group.peers
    assert peers is not None

    def own(launch: Callable[..., None], add: bool) -> Callable[..., Tensor]:
        out = residual if add else torch.empty_like(local)

        def launched(_: int = 0) -> Tensor:
            launch(peers, local, out, add)
            return out

        return launched

    found = {"nccl": nccl, "copied": copied, "one shot": one_shot, "two shot": two_shot}
    found |= {"words": own(sum_words, True), "blocks": own(sum_blocks, True)}
    found |= {"only words": own(sum_words, False), "only blocks": own(sum_blocks, False)}
    if count // 2 > peers.word_cap:
        del found["words"], found["only words"]
    if size > peers.block_cap_bytes:  # piece by piece
        found["blocks"] = lambda _=0: (group.add_sum_(residual, local), residual)[1]
        del found["only blocks"]
    if size > ONE_SHOT_BYTES:
        del found["copied"], found["one shot"]
    for kind, launch in found.items():
        for tensor in (buffer, local):
            tensor.fill_(rank + 1)
        residual.zero_()
        dist.barrier()
        total = launch(0)
        assert torch.equal(total, torch.full_like(total, ranks * (ranks + 1) // 2)), kind
        dist.barrier()
    for tensor in (buffer, local, residual):
        tensor.zero_()  # sums of sums stay finite
    dist.barrier()
    return found | {"add": add}


def measure(rank: int, ranks: int, meet: str, out: Path | None) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    group = PeerGroup(rank, ranks, meet, device, 60)
    if rank == 0:
        print(f"{'bytes':>9}" + "".join(f"{column:>12}" for column in COLUMNS))
    lines = []
    for size in SIZES:
        line: dict[str, float] = {}
        for column, launch in variants(size, device, group).items():
            dist.barrier()
            own = torch.tensor(graph_microseconds(launch), device=device)
            dist.all_reduce(own, op=dist.ReduceOp.MAX)
            line[column] = round(own.item(), 2)
        lines.append({"bytes": size, "ranks": ranks, "us": line})
        if rank == 0:
            cells = (f"{line[column]:>12}" if column in line else " " * 12 for column in COLUMNS)
            print(f"{size:>9}" + "".join(cells), flush=True)
    if rank == 0 and out:
        device_name = torch.cuda.get_device_name(device)
        out.write_text(json.dumps({"device": device_name, "rows": lines}, indent=1) + "\n")
    group.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON of what is printed")
    arguments = parser.parse_args()
    os.environ |= {
        "NCCL_NVLS_ENABLE": "0",
        "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
        "NVSHMEM_DISABLE_NVLS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(
            measure,
            (arguments.ranks, f"file://{folder}/meet", arguments.out),
            nprocs=arguments.ranks,
        )


if __name__ == "__main__":
    main()
