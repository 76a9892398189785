"""Decode attention on this GPU: bytes of keys and values per second, in a table and a plot.

Page sets are rotated past the L2 cache inside one CUDA graph; medians of 7 replays.

    PYTHONPATH=server:kernels:operator:. python3 benchmarks/kernels/paged_decode.py --out FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from benchmarks.kernels.timing import graph_microseconds

from octavo_kernels.ops import AttentionBatch, select_ops

PEAK_GB_PER_SECOND = 3000  # device-to-device copy on an H100, shared/reference/measured.md
L2_BYTES = 50 << 20
BLOCK_SIZE = 16
# query heads per kv head, kv heads, head size
SHAPES = [(1, 20, 64), (2, 8, 128), (4, 8, 128), (8, 8, 128)]
# batch, context; the third is the bound that a graph is captured with
BATCHES = [
    (1, 100), (1, 512), (1, 8192), (1, 32_768), (8, 512), (8, 4096), (32, 600), (32, 4096),
    (64, 512), (128, 1024), (256, 64), (256, 512), (256, 1024),
]  # fmt: skip
BOUND = 32_768


def measure(
    batch: int, context: int, group: int, kv_heads: int, head_size: int
) -> dict[str, float]:
    ops = select_ops("cuda")
    pages = -(-context // BLOCK_SIZE)
    read = batch * context * kv_heads * head_size * 2 * 2  # keys and values, 2 bytes each
    sets = max(1, min(24, 3 * L2_BYTES // read))
    shape = (sets * batch * pages, kv_heads, BLOCK_SIZE, head_size)
    keys, values = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    order = torch.randperm(shape[0], device="cuda", dtype=torch.int32).view(sets, batch, pages)
    tables = torch.zeros(sets, batch, BOUND // BLOCK_SIZE, dtype=torch.int32, device="cuda")
    tables[:, :, :pages] = order
    heads = group * kv_heads
    qkv = torch.randn(batch, heads + 2 * kv_heads, head_size, dtype=torch.bfloat16, device="cuda")
    rows = torch.arange(batch + 1, dtype=torch.int32, device="cuda")
    contexts = torch.full((batch,), context, dtype=torch.int32, device="cuda")
    batches = [
        AttentionBatch(table, rows[:batch], rows, contexts, batch, 1, BOUND) for table in tables
    ]

    def attend(index: int) -> None:
        ops.paged_attention(
            qkv[:, :heads], keys, values, batches[index % sets], scale=head_size**-0.5
        )

    us = graph_microseconds(attend)
    return {
        "batch": batch, "context": context, "group": group, "kv_heads": kv_heads,
        "head_size": head_size, "read_bytes": read, "us": us, "gb_per_second": read / us / 1e3,
    }  # fmt: skip


def plot(rows: list[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for group, kv_heads, head_size in SHAPES:
        points = sorted(
            (row["read_bytes"] / 1e6, row["gb_per_second"])
            for row in rows
            if (row["group"], row["kv_heads"], row["head_size"]) == (group, kv_heads, head_size)
        )
        label = f"{group * kv_heads}/{kv_heads} heads of {head_size}"
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.axhline(PEAK_GB_PER_SECOND, color="black", linewidth=1, label="copy, 3.0 TB/s")
    axes.axhline(0.85 * PEAK_GB_PER_SECOND, color="black", linewidth=1, linestyle=":", label="85%")
    axes.set(xscale="log", xlabel="keys and values read, MB", ylabel="GB/s", ylim=(0, 3300))
    axes.set_title("Paged decode attention, bf16, one H100")
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    rows: list[dict[str, float]] = []
    for group, kv_heads, head_size in SHAPES:
        for batch, context in BATCHES:
            row = measure(batch, context, group, kv_heads, head_size)
            rows.append(row)
            print(
                f"{group * kv_heads:>3}/{kv_heads} x {head_size:<3} batch {batch:>3} context "
                f"{context:>6}: {row['read_bytes'] / 1e6:>8.1f} MB {row['us']:>8.1f} us "
                f"{row['gb_per_second']:>6.0f} GB/s",
                flush=True,
            )
            text = json.dumps({"device": torch.cuda.get_device_name(), "rows": rows}, indent=1)
            (arguments.out / "paged_decode.json").write_text(text + "\n")
    plot(rows, arguments.out / "paged_decode.png")


if __name__ == "__main__":
    main()
