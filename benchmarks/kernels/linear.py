"""Products of few rows as a model's layers ask for them: Octavo's choice, cuBLAS, the bytes.

    PYTHONPATH=server:kernels:operator:. python3 benchmarks/kernels/linear.py [--out FILE]

Each line is one op with what surrounds it (the norm in front, the activation, the addition to the
residual), in microseconds inside a CUDA graph of 24, weights rotated past the L2. "bytes" is the
weight alone at 3.0 TB/s. Needs an H100; about 40 s.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from octavo_kernels import skinny_table
from octavo_kernels.ops import Ops, select_ops

# name: dtype, out, in, what surrounds the product, bias.
SHAPES: dict[str, tuple[torch.dtype, int, int, str, bool]] = {
    "llama-8b qkv": (torch.bfloat16, 6144, 4096, "rms_norm", False),
    "llama-8b o": (torch.bfloat16, 4096, 4096, "add", False),
    "llama-8b gate_up": (torch.bfloat16, 28672, 4096, "rms_norm silu_mul", False),
    "llama-8b down": (torch.bfloat16, 4096, 14336, "add", False),
    "qwen3-0.6b qkv": (torch.bfloat16, 4096, 1024, "rms_norm", False),
    "qwen3-0.6b o": (torch.bfloat16, 1024, 2048, "add", False),
    "qwen3-0.6b gate_up": (torch.bfloat16, 6144, 1024, "rms_norm silu_mul", False),
    "qwen3-0.6b down": (torch.bfloat16, 1024, 3072, "add", False),
    "gpt2-large qkv": (torch.float16, 3840, 1280, "layer_norm", True),
    "gpt2-large o": (torch.float16, 1280, 1280, "add", True),
    "gpt2-large up": (torch.float16, 5120, 1280, "layer_norm gelu", True),
    "gpt2-large down": (torch.float16, 1280, 5120, "add", True),
}
ROWS = (1, 2, 4, 8, 16, 32, 64)
# What an H100's memory gives a stream that only reads (measured: 3.0 TB/s of 3.35).
BYTES_PER_MICROSECOND = 3.0e6
# Twice the L2's 50 MB, and some: no weight is still there when its turn comes again.
ROTATED_BYTES = 128 << 20
LAUNCHES, REPEATS = 24, 5


def microseconds(launch: Callable[[int], object]) -> float:
    """Median time of one `launch(i)` in a graph of LAUNCHES."""
    for i in range(2):
        launch(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(LAUNCHES):
            launch(i)
    event: Any = torch.cuda.Event
    began, ended = (event(enable_timing=True) for _ in range(2))
    graph.replay()
    times: list[float] = []
    for _ in range(REPEATS):
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) * 1e3 / LAUNCHES)
    return statistics.median(times)


def op_of(ops: Ops, name: str, rows: int) -> Callable[[int], object]:
    """`launch(i)` of one op with copy i of its weight."""
    dtype, outs, ins, around, with_bias = SHAPES[name]
    copies = max(2, -(-ROTATED_BYTES // (outs * ins * dtype.itemsize)))
    weights = [
        ops.prepare_linear(torch.empty(outs, ins, dtype=dtype, device="cuda").uniform_(-1e-3, 1e-3))
        for _ in range(copies)
    ]
    bias = torch.zeros(outs, dtype=dtype, device="cuda") if with_bias else None
    if around != "add":
        residual = torch.randn(rows, ins, device="cuda")
        norm = torch.ones(ins, dtype=dtype, device="cuda")
        shift = norm if "layer_norm" in around else None
        activation: Any = around.split()[1] if " " in around else None
        return lambda i: ops.norm_linear(
            residual, norm, shift, 1e-5, weights[i % copies], bias, activation
        )
    residual = torch.randn(rows, outs, device="cuda")
    x = torch.randn(rows, ins, device="cuda").to(dtype)
    return lambda i: ops.linear_add(x, weights[i % copies], bias, residual)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON, a list of what is printed")
    arguments = parser.parse_args()
    ops = select_ops("cuda")
    table = skinny_table.choose
    found = []
    print(f"{'us':<22} rows     bytes    cuBLAS    Octavo  kernel", flush=True)
    for name, (dtype, outs, ins, _, _) in SHAPES.items():
        for rows in ROWS:
            launch = op_of(ops, name, rows)
            chosen = table(dtype.itemsize, outs, ins, rows)
            octavo = microseconds(launch)
            skinny_table.choose = lambda *_: None
            cublas = microseconds(launch)
            skinny_table.choose = table
            bytes_us = outs * ins * dtype.itemsize / BYTES_PER_MICROSECOND
            kernel = "cuBLAS" if chosen is None else f"{chosen.kind} {tuple(chosen)[1:]}"
            print(
                f"{name:<22} {rows:>4} {bytes_us:>9.2f} {cublas:>9.2f} {octavo:>9.2f}  {kernel}",
                flush=True,
            )
            found.append(
                {"name": name, "rows": rows, "bytes_us": bytes_us, "cublas_us": cublas,
                 "octavo_us": octavo, "kernel": kernel}
            )  # fmt: skip
            if arguments.out:
                arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
