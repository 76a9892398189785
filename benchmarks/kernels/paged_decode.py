"""Decode attention on this GPU: us and bytes of keys and values per second, a table and a roofline.

As in the engine: planned once, then launched once a layer, inside one CUDA graph; launches read
other pages than those before, past the L2 cache. Medians of 7 replays. Three sections:

- roofline: batch 1 to 256, contexts 512 to 32k, groups of 1, 4 and 8 query heads per kv head
- shared: many rows behind one prefix, and the same batch with sharing off
- none shared: what looking for shared keys costs where there are none; and planning, once a step

    PYTHONPATH=server:kernels:operator:. python3 benchmarks/kernels/paged_decode.py \
        --out benchmarks/results/paged_decode.json --plot benchmarks/results/paged_decode.png

About a minute; `--sweep` instead tries tile shapes for the shared section. `--tiny` rehearses it
anywhere (OCTAVO_OPS=triton TRITON_INTERPRET=1): its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from benchmarks.kernels.decode_plot import plot
from benchmarks.kernels.timing import graph_microseconds
from torch import Tensor

from octavo_kernels import attention_plan, shared_decode
from octavo_kernels.ops import AttentionBatch, select_ops
from octavo_kernels.tiles import Sharing, Tiles

BLOCK_SIZE = 16
L2_BYTES = 50 << 20
# Keys and values of all batches lie in one place of this size; larger batches are left out.
POOL_BYTES = 18 << 30
NEVER = Sharing(seqs=1 << 30, mixed_seqs=1 << 30)
TINY = Sharing(2, 2, rows=2, keys=16, saved_keys=1, min_keys=16, multiple=16)


@dataclass(frozen=True)
class Case:
    section: str
    group: int
    batch: int
    shared: int  # keys that all rows begin with
    own: tuple[int, int]  # tokens behind them: from, to; evenly spread over the rows
    kv_heads: int = 8
    head_size: int = 128

    @property
    def contexts(self) -> list[int]:
        low, high = self.own
        steps = max(1, self.batch - 1)
        return [self.shared + low + (high - low) * row // steps for row in range(self.batch)]

    @property
    def bytes_of_key(self) -> int:
        return self.kv_heads * self.head_size * 2 * 2  # a key and a value, 2 bytes each

    @property
    def unique_bytes(self) -> int:
        return (sum(self.contexts) - self.shared * (self.batch - 1)) * self.bytes_of_key

    def __str__(self) -> str:
        heads = f"{self.group * self.kv_heads}/{self.kv_heads} x {self.head_size}"
        low, high = self.own
        own = f"{low}" if low == high else f"{low}-{high}"
        keys = f"({self.shared} + {own})" if self.shared else own
        return f"{self.section:<11} {heads:<10} {self.batch:>3} x {keys}"


def roofline_cases() -> list[Case]:
    heads = {1: (20, 64), 4: (8, 128), 8: (8, 128)}
    return [
        Case("roofline", group, batch, 0, (context, context), *heads[group])
        for group in heads
        for batch in (1, 8, 32, 128, 256)
        for context in (512, 2048, 8192, 32_768)
    ]


def shared_cases() -> list[Case]:
    return [
        Case("shared", 4, 128, 2048, (64, 128)),
        Case("shared", 1, 128, 2048, (64, 128), 20, 64),
        Case("shared", 4, 32, 2048, (64, 128)),
        Case("shared", 4, 16, 2048, (64, 128)),
        Case("shared", 4, 256, 512, (64, 128)),
        Case("none shared", 4, 256, 0, (640, 640)),
        Case("none shared", 4, 32, 0, (600, 600)),
        Case("none shared", 4, 16, 0, (600, 600)),
        Case("none shared", 1, 50, 0, (64, 64), 20, 64),
    ]


def tiny(case: Case) -> Case:
    low, high = (max(1, length // 64) for length in case.own)
    batch = max(2, case.batch // 16)
    return replace(case, batch=batch, shared=case.shared // 32, own=(low, high), kv_heads=1)


class Bench:
    def __init__(self, device: str) -> None:
        self.device = device
        self.ops = select_ops(device)
        self.on_gpu = device == "cuda"
        self.sharing = attention_plan.SHARING if self.on_gpu else TINY
        # The interpreter computes garbage in bfloat16.
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        elements = POOL_BYTES // 4 if self.on_gpu else 1 << 21
        self.pools = [torch.empty(elements, dtype=self.dtype, device=device) for _ in range(2)]
        for pool in self.pools:
            for piece in pool.split(1 << 28):
                piece.normal_()

    def fits(self, case: Case) -> bool:
        return case.unique_bytes <= POOL_BYTES

    def batches(self, case: Case, caches: tuple[Tensor, Tensor]) -> list[AttentionBatch]:
        """Batches of other pages each, that many of which are three times the L2 cache."""
        wanted = -(-3 * L2_BYTES // case.unique_bytes)
        shared = case.shared // BLOCK_SIZE
        own = -(-case.contexts[-1] // BLOCK_SIZE) - shared
        pages = shared + case.batch * own
        sets = max(1, min(24 if self.on_gpu else 2, wanted, caches[0].shape[0] // pages))
        order = torch.randperm(caches[0].shape[0], device=self.device)[: sets * pages]
        order = order.to(torch.int32).view(sets, pages)
        rows = torch.arange(case.batch + 1, dtype=torch.int32, device=self.device)
        contexts = torch.tensor(case.contexts, dtype=torch.int32, device=self.device)
        # A graph provides for more than its step has.
        bound = 1 << case.contexts[-1].bit_length()
        found = []
        for blocks in order:
            front = blocks[:shared].expand(case.batch, shared)
            tables = torch.cat([front, blocks[shared:].view(case.batch, own)], 1)
            spare = tables.new_zeros(case.batch, bound // BLOCK_SIZE + 1 - tables.shape[1])
            tables = torch.cat([tables, spare], 1)
            found.append(AttentionBatch(tables, rows[:-1], rows, contexts, case.batch, 1, bound))
        return found

    def measure(self, case: Case, sharing: Sharing) -> dict[str, float]:
        """us of a layer's launch and of planning; items of shared keys that the plan has."""
        shape = (-1, case.kv_heads, BLOCK_SIZE, case.head_size)
        page = case.kv_heads * BLOCK_SIZE * case.head_size
        caches = tuple(pool[: pool.numel() // page * page].view(shape) for pool in self.pools)
        heads = case.group * case.kv_heads
        qkv = torch.randn(case.batch, heads + 2 * case.kv_heads, case.head_size)
        query = qkv.to(self.device, self.dtype)[:, :heads]
        batches = self.batches(case, caches)
        with mock.patch.object(attention_plan, "SHARING", sharing):

            def plan(index: int) -> AttentionBatch:
                batch = batches[index % len(batches)]
                return self.ops.plan_attention(batch, heads=heads, key_cache=caches[0])

            planned = [plan(index) for index in range(len(batches))]

            def attend(index: int) -> None:
                batch = planned[index % len(planned)]
                self.ops.paged_attention(query, *caches, batch, scale=case.head_size**-0.5)

            launches = max(4, min(24, (16 << 30) // case.unique_bytes))
            found = {"us": self.microseconds(attend, launches)}
            if case.section != "roofline":
                found["plan_us"] = self.microseconds(plan, 24)
            shared = planned[0].shared
            found["items"] = 0 if shared is None else int(shared.items[0, 0])
        return found

    def microseconds(self, launch: Callable[[int], object], launches: int) -> float:
        if self.on_gpu:
            return graph_microseconds(launch, launches)
        times = []
        for index in range(2):
            begin = time.perf_counter()
            launch(index)
            times.append((time.perf_counter() - begin) * 1e6)
        return statistics.median(times)


def rates(case: Case, us: float) -> dict[str, float]:
    """TB/s of the bytes that must be read, and of those that rows would read each for itself."""
    apart = sum(case.contexts) * case.bytes_of_key
    return {
        "bytes": case.unique_bytes,
        "bytes_apart": apart,
        "tb_per_second": case.unique_bytes / us / 1e6,
        "tb_per_second_as_if_apart": apart / us / 1e6,
    }


def run(bench: Bench, cases: list[Case]) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    for case in cases:
        # Roofline cases share nothing: the plain kernel alone.
        roofline = case.section == "roofline"
        found = bench.measure(case, NEVER if roofline else bench.sharing)
        line = f"{case!s:<44}{found['us']:>9.1f} us"
        if not roofline:
            off = bench.measure(case, NEVER)
            found |= {"us_sharing_off": off["us"], "plan_us_sharing_off": off["plan_us"]}
            line += (
                f" (off {off['us']:>7.1f}) plan {found['plan_us']:>5.1f} ({off['plan_us']:.1f})"
                f" items {found['items']:>3}"
            )
        found |= rates(case, found["us"])
        line += f" {found['tb_per_second']:>6.2f} TB/s"
        if case.shared:
            line += f", as if apart {found['tb_per_second_as_if_apart']:.2f}"
        print(line, flush=True)
        results.append({**asdict(case), "context": case.contexts[-1], **found})
    return results


def sweep(bench: Bench, cases: list[Case]) -> None:
    """Tile shapes and how many items run at once, for the shared cases."""
    shapes = [
        (Tiles(rows, tile, warps, stages), at_once)
        for rows, warps, counts in ((64, 4, (1, 2, 3)), (128, 8, (1, 2)), (128, 4, (1, 2)))
        for tile in (32, 64, 128)
        for stages in (2, 3, 4)
        for at_once in counts
        if tile * stages <= 256
    ]
    for case in cases:
        for tiles, at_once in shapes:

            def chosen(*_: int, tiles: Tiles = tiles) -> Tiles:
                return tiles

            def bound(_: Tiles, kv_heads: int, device: torch.device, most: int = at_once) -> int:
                return max(1, most * attention_plan.multiprocessors(device) // kv_heads)

            with (
                mock.patch.object(attention_plan, "shared_tiles", chosen),
                mock.patch.object(shared_decode, "shared_tiles", chosen),
                mock.patch.object(attention_plan, "shared_bound", bound),
                mock.patch.object(shared_decode, "shared_bound", bound),
            ):
                try:
                    us = f"{bench.measure(case, bench.sharing)['us']:.1f}"
                except Exception as error:  # a shape that does not fit is a row of the table
                    us = type(error).__name__
            print(
                f"{case!s:<44} rows {tiles.block_m} tile {tiles.tile} warps {tiles.warps} "
                f"stages {tiles.stages} at once {at_once}: {us}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--plot", type=Path, help="PNG; needs matplotlib")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--only", default="", help="cases whose line contains this")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    begin = time.perf_counter()
    bench = Bench("cpu" if arguments.tiny else "cuda")
    cases = [case for case in [*shared_cases(), *roofline_cases()] if arguments.only in str(case)]
    if arguments.tiny:
        cases = [tiny(case) for case in cases if case.own[1] <= 2048]
    cases = [case for case in cases if bench.fits(case)]
    if arguments.sweep:
        sweep(bench, [case for case in cases if case.section == "shared"])
        return
    results = run(bench, cases)
    device = torch.cuda.get_device_name() if bench.on_gpu else "interpreter"
    if arguments.out:
        text = json.dumps({"device": device, "rows": results}, indent=1)
        arguments.out.write_text(text + "\n")
    if arguments.plot:
        plot(results, device, arguments.plot)
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
