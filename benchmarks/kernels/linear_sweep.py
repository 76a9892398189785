"""Entries of skinny_table.py for the shapes that one of two GPUs has: every known cut, measured.

    PYTHONPATH=server:kernels:operator:. python3 benchmarks/kernels/linear_sweep.py [--only llama]

For each shape and number of rows: every cut that skinny_table.py has for so many rows of any shape,
and cuBLAS, timed as in linear.py with the norm in front (products into the residual stream alone:
their sum is the ranks'). Prints lines for the table, the time and what `guess` and cuBLAS take. A
cut that does not fit the shape is left out. Compiling dominates: three minutes for llama.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from linear import ROTATED_BYTES, microseconds  # beside this file

from octavo_kernels import skinny_table
from octavo_kernels.ops import Ops, select_ops
from octavo_kernels.skinny_linear import Skinny

# name: dtype, out, in, the norm in front and the activation behind.
SHAPES: dict[str, tuple[torch.dtype, int, int, str]] = {
    "llama-8b qkv": (torch.bfloat16, 3072, 4096, "rms_norm"),
    "llama-8b o": (torch.bfloat16, 4096, 2048, ""),
    "llama-8b gate_up": (torch.bfloat16, 14336, 4096, "rms_norm silu_mul"),
    "llama-8b down": (torch.bfloat16, 4096, 7168, ""),
    "llama-8b head": (torch.bfloat16, 64128, 4096, "rms_norm"),
    "gpt2-large qkv": (torch.float16, 1920, 1280, "layer_norm"),
    "gpt2-large o": (torch.float16, 1280, 640, ""),
    "gpt2-large up": (torch.float16, 2560, 1280, "layer_norm gelu"),
    "gpt2-large down": (torch.float16, 1280, 2560, ""),
    "gpt2-large head": (torch.float16, 25152, 1280, "layer_norm"),
    "qwen3-0.6b qkv": (torch.bfloat16, 2048, 1024, "rms_norm"),
    "qwen3-0.6b o": (torch.bfloat16, 1024, 1024, ""),
    "qwen3-0.6b gate_up": (torch.bfloat16, 3072, 1024, "rms_norm silu_mul"),
    "qwen3-0.6b down": (torch.bfloat16, 1024, 1536, ""),
    "qwen3-0.6b head": (torch.bfloat16, 75968, 1024, "rms_norm"),
}
ROWS = (1, 2, 4, 8, 16, 32, 64)


def cuts(rows: int) -> list[tuple[object, ...] | None]:
    """All that the table has for so many rows, the most frequent first, and None: cuBLAS."""
    known = [cut for key, cut in skinny_table.TABLE.items() if key[3] == rows and cut is not None]
    return [None, *sorted(set(known), key=lambda cut: -known.count(cut))]


def op_of(ops: Ops, name: str, rows: int) -> Callable[[int], object]:
    """`launch(i)` of one product with copy i of its weight."""
    dtype, outs, ins, around = SHAPES[name]
    copies = max(2, -(-ROTATED_BYTES // (outs * ins * dtype.itemsize)))
    weights = [
        ops.prepare_linear(torch.empty(outs, ins, dtype=dtype, device="cuda").uniform_(-1e-3, 1e-3))
        for _ in range(copies)
    ]
    bias = torch.zeros(outs, dtype=dtype, device="cuda") if dtype == torch.float16 else None
    if not around:
        x = torch.randn(rows, ins, device="cuda").to(dtype)
        return lambda i: ops.linear(x, weights[i % copies], bias)
    residual = torch.randn(rows, ins, device="cuda")
    norm = torch.ones(ins, dtype=dtype, device="cuda")
    shift = norm if "layer_norm" in around else None
    activation = around.split()[1] if " " in around else None
    return lambda i: ops.norm_linear(
        residual, norm, shift, 1e-5, weights[i % copies], bias,
        activation,  # type: ignore[arg-type]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="shapes whose name begins with this")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--limit", type=float, default=400, help="seconds")
    arguments = parser.parse_args()
    began, ops = time.monotonic(), select_ops("cuda")
    names = [name for name in SHAPES if name.startswith(arguments.only)]
    for rows in arguments.rows:
        for name in names:
            if time.monotonic() - began > arguments.limit:
                print("no time for the rest")
                return
            dtype, outs, ins, _ = SHAPES[name]
            launch = op_of(ops, name, rows)
            times: dict[tuple[object, ...] | None, float] = {}
            guessed = skinny_table.guess(outs, ins, rows)
            for cut in [*cuts(rows), *([tuple(guessed)] if guessed else [])]:
                chosen = None if cut is None else Skinny(*cut)  # type: ignore[arg-type]
                skinny_table.choose = lambda *_, chosen=chosen: chosen  # type: ignore[assignment]
                try:
                    times[cut] = microseconds(launch)
                except Exception as error:
                    print(f"# {name} {rows} {cut}: {type(error).__name__} {str(error)[:60]!r}")
            best = min(times, key=lambda cut: times[cut])
            before = times[tuple(guessed) if guessed else None]
            print(
                f"    ({dtype.itemsize}, {outs}, {ins}, {rows}): {best},  # {name}: "
                f"{times[best]:.2f} us, guess {before:.2f}, cuBLAS {times[None]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
