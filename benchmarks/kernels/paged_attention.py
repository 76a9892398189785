"""Causal prefill attention on this GPU, beside torch's cuDNN attention measured in the same run.

cuDNN gets contiguous, unpaged keys and values; Octavo's kernel reads the same number of pages.

    PYTHONPATH=server:kernels:operator:. python3 benchmarks/kernels/paged_attention.py --out FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from benchmarks.kernels.timing import graph_microseconds
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from octavo_kernels.ops import AttentionBatch, select_ops

BLOCK_SIZE = 16
# query heads per kv head, kv heads, head size
SHAPES = [(4, 8, 128), (2, 8, 128), (1, 20, 64)]
SEQUENCES = [(1, 8192), (4, 2048), (16, 512), (1, 512)]  # how many, tokens of each
LAUNCHES = 8  # a launch of 8k tokens takes milliseconds


def measure(seqs: int, length: int, group: int, kv_heads: int, head_size: int) -> dict[str, float]:
    ops = select_ops("cuda")
    pages, heads, tokens = length // BLOCK_SIZE, group * kv_heads, seqs * length
    shape = (seqs * pages, kv_heads, BLOCK_SIZE, head_size)
    keys, values = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    tables = torch.randperm(shape[0], device="cuda", dtype=torch.int32).view(seqs, pages)
    qkv = torch.randn(tokens, heads + 2 * kv_heads, head_size, dtype=torch.bfloat16, device="cuda")
    rows = torch.arange(seqs + 1, dtype=torch.int32, device="cuda")
    contexts = torch.full((seqs,), length, dtype=torch.int32, device="cuda")
    batch = AttentionBatch(tables, rows[:seqs], rows * length, contexts, 0, length, length)
    scale = head_size**-0.5
    ours = graph_microseconds(
        lambda _: ops.paged_attention(qkv[:, :heads], keys, values, batch, scale=scale), LAUNCHES
    )
    dense = [
        torch.randn(seqs, count, length, head_size, dtype=torch.bfloat16, device="cuda")
        for count in (heads, kv_heads, kv_heads)
    ]
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        cudnn = graph_microseconds(
            lambda _: scaled_dot_product_attention(*dense, is_causal=True, enable_gqa=group > 1),
            LAUNCHES,
        )
    operations = 2 * seqs * length * length * heads * head_size  # causal: half of 4
    return {
        "seqs": seqs, "length": length, "group": group, "kv_heads": kv_heads,
        "head_size": head_size, "us": ours, "tflops": operations / ours / 1e6,
        "cudnn_us": cudnn, "cudnn_tflops": operations / cudnn / 1e6, "share": cudnn / ours,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    rows: list[dict[str, float]] = []
    for group, kv_heads, head_size in SHAPES:
        for seqs, length in SEQUENCES:
            row = measure(seqs, length, group, kv_heads, head_size)
            rows.append(row)
            print(
                f"{group * kv_heads:>3}/{kv_heads} x {head_size:<3} {seqs:>2} x {length:<5} "
                f"{row['us']:>8.1f} us {row['tflops']:>5.0f} TFLOP/s, cuDNN "
                f"{row['cudnn_tflops']:>5.0f}: {row['share']:.0%}",
                flush=True,
            )
            text = json.dumps({"device": torch.cuda.get_device_name(), "rows": rows}, indent=1)
            (arguments.out / "paged_attention.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
