"""Entries of skinny_table.py: known and likely cuts of every product, measured.

    PYTHONPATH=server:kernels:operator:. python3 benchmarks/kernels/linear_sweep.py \\
        [--only llama-8b] [--ranks 1 2] [--rows 128 256] [--processes 16]

For each shape (as one GPU has it, or one of `--ranks`) and number of rows: the cuts that the table
has for so many rows of any shape, more than 64 rows those of `wide_cuts`, and cuBLAS, timed as in
linear.py with what surrounds the product (between ranks nothing follows a product into the residual
stream: their sum comes first). Prints lines for the table, with the time and cuBLAS's. A cut that
does not fit is left out. Processes compile first; on 16 cores a size takes a minute or two.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator

import torch
from linear import ROTATED_BYTES, SHAPES, microseconds  # beside this file

from octavo_kernels import skinny_table
from octavo_kernels.ops import Ops, select_ops
from octavo_kernels.skinny_linear import Skinny

HEADS = {
    "llama-8b head": (torch.bfloat16, 128256, 4096, "rms_norm", False),
    "qwen3-0.6b head": (torch.bfloat16, 151936, 1024, "rms_norm", False),
    "gpt2-large head": (torch.float16, 50304, 1280, "layer_norm", False),
}
ROWS = (1, 2, 4, 8, 16, 32, 64)
SHARED_BYTES = 227 << 10
# Accumulators a thread can hold beside what else it needs.
SUMS_A_THREAD = 128

Cut = tuple[object, ...] | None
Work = tuple[str, int, int, Cut]  # name, ranks, rows, cut


def shape_of(name: str, ranks: int) -> tuple[torch.dtype, int, int, str, bool]:
    """As linear.SHAPES, of one of `ranks`: into the residual stream its inputs are shared out."""
    dtype, outs, ins, around, bias = (SHAPES | HEADS)[name]
    if ranks == 1:
        return dtype, outs, ins, around, bias
    if around == "add":
        return dtype, outs, ins // ranks, "", bias
    return dtype, outs // ranks, ins, around, bias


def wide_cuts(outs: int, rows: int) -> Iterator[tuple[object, ...]]:
    """For more than 64 rows: what fits into shared memory and registers and is no more than four
    programs a multiprocessor."""
    for block_out, tile_rows, block_in in itertools.product((64, 128), (64, 128, 256), (64, 128)):
        if tile_rows >= 2 * rows:
            continue
        for stages, splits in itertools.product((3, 4, 5), (1, 2, 4)):
            warps = 4 if block_out == 64 else 8
            programs = -(-outs // block_out) * -(-rows // tile_rows) * splits
            if (block_out + tile_rows) * block_in * 2 * stages > SHARED_BYTES:
                continue
            if block_out * tile_rows > SUMS_A_THREAD * 32 * warps or programs > 528:
                continue
            if programs < 48 or (splits > 1 and programs > 264):
                continue
            yield ("dot", block_out, block_in, warps, stages, splits, 2, 0, 0, 1, tile_rows)


def cuts(name: str, ranks: int, rows: int) -> list[Cut]:
    """All that the table has for so many rows, the most frequent first, and None: cuBLAS."""
    known = [cut for key, cut in skinny_table.TABLE.items() if key[3] == rows and cut is not None]
    found: list[Cut] = [None, *sorted(set(known), key=lambda cut: -known.count(cut))]
    outs, ins = shape_of(name, ranks)[1:3]
    if rows > 64:
        found += [cut for cut in wide_cuts(outs, rows) if cut not in found]
    elif guessed := skinny_table.guess(outs, ins, rows):
        found += [tuple(guessed)] if tuple(guessed) not in found else []
    return found


def op_of(ops: Ops, name: str, ranks: int, rows: int, size: int) -> Callable[[int], object]:
    """`launch(i)` of one product with copy i of its weight, `size` bytes of copies in all."""
    dtype, outs, ins, around, with_bias = shape_of(name, ranks)
    copies = max(1, -(-size // (outs * ins * dtype.itemsize)))
    weights = [
        ops.prepare_linear(torch.empty(outs, ins, dtype=dtype, device="cuda").uniform_(-1e-3, 1e-3))
        for _ in range(copies)
    ]
    bias = torch.zeros(outs, dtype=dtype, device="cuda") if with_bias else None
    if around in ("", "add"):
        x = torch.randn(rows, ins, device="cuda").to(dtype)
        if not around:
            return lambda i: ops.linear(x, weights[i % copies], bias)
        stream = torch.randn(rows, outs, device="cuda")
        return lambda i: ops.linear_add(x, weights[i % copies], bias, stream)
    residual = torch.randn(rows, ins, device="cuda")
    norm = torch.ones(ins, dtype=dtype, device="cuda")
    shift = norm if "layer_norm" in around else None
    activation = around.split()[1] if " " in around else None
    return lambda i: ops.norm_linear(
        residual, norm, shift, 1e-5, weights[i % copies], bias,
        activation,  # type: ignore[arg-type]
    )  # fmt: skip


def take(cut: Cut) -> None:
    """Every product from now on is cut so."""
    chosen = None if cut is None else Skinny(*cut)  # type: ignore[arg-type]
    skinny_table.choose = lambda *_: chosen  # type: ignore[assignment]


def compile_some(works: list[Work]) -> None:
    """Launch each once, for what Triton's cache then holds; failures come again when timed."""
    ops = select_ops("cuda")
    for name, ranks, rows, cut in works:
        take(cut)
        try:
            op_of(ops, name, ranks, rows, 1)(0)
        except Exception as error:
            print(f"# {name} {ranks} {rows} {cut}: {type(error).__name__}")
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="shapes whose name begins with this")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--processes", type=int, default=8, help="that compile")
    parser.add_argument("--limit", type=float, default=400, help="seconds")
    arguments = parser.parse_args()
    began, choose = time.monotonic(), skinny_table.choose
    names = [name for name in SHAPES | HEADS if name.startswith(arguments.only)]
    products = list(itertools.product(arguments.rows, arguments.ranks, names))
    works: list[Work] = [
        (name, ranks, rows, cut)
        for rows, ranks, name in products
        for cut in cuts(name, ranks, rows)
    ]
    shares = [works[i :: arguments.processes] for i in range(arguments.processes)]
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        pool.map(compile_some, shares, chunksize=1)
    print(f"# {len(works)} cuts compiled in {time.monotonic() - began:.0f} s", flush=True)
    ops = select_ops("cuda")
    for rows, ranks, name in products:
        if time.monotonic() - began > arguments.limit:
            print("# no time for the rest")
            return
        dtype, outs, ins, _, _ = shape_of(name, ranks)
        launch = op_of(ops, name, ranks, rows, max(ROTATED_BYTES, 2 * outs * ins * 2))
        times: dict[Cut, float] = {}
        now = choose(dtype.itemsize, outs, ins, rows)
        for cut in cuts(name, ranks, rows):
            take(cut)
            try:
                times[cut] = microseconds(launch)
            except Exception as error:
                print(f"# {name} {rows} {cut}: {type(error).__name__} {str(error)[:60]!r}")
        order = sorted(times, key=lambda cut: times[cut])
        now_us = times.get(None if now is None else tuple(now), float("nan"))
        print(
            f"    ({dtype.itemsize}, {outs}, {ins}, {rows}): {order[0]},  # {name}: "
            f"{times[order[0]]:.2f} us, before {now_us:.2f}, cuBLAS {times[None]:.2f}; then "
            + ", ".join(f"{cut}: {times[cut]:.2f}" for cut in order[1:3]),
            flush=True,
        )


if __name__ == "__main__":
    main()
