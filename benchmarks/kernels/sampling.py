"""The sampler's time by rows, vocabulary and what the rows ask for.

    PYTHONPATH=server:kernels:operator:. python3 benchmarks/kernels/sampling.py [--out FILE]

Microseconds of one call inside a CUDA graph of 24, all rows asking for the same. Logits are
normal with deviation 2 in the model's dtype. Needs an H100; about 20 s.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from linear import microseconds  # beside this file

from octavo_kernels.ops import SamplingRows, select_ops

VOCABULARIES = {50_257: torch.float16, 128_256: torch.bfloat16, 151_936: torch.bfloat16}
ROWS = (1, 32, 256, 512)
# temperature, top_k, top_p
CASES = {"greedy": (0.0, 0, 1.0), "T 0.6": (0.6, 0, 1.0), "T 0.8, k 50, p 0.9": (0.8, 50, 0.9)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON, a list of what is printed")
    arguments = parser.parse_args()
    ops = select_ops("cuda")
    found = []
    for vocab, dtype in VOCABULARIES.items():
        for count in ROWS:
            logits = (torch.randn(count, vocab, device="cuda") * 2).to(dtype)
            rows = torch.arange(count, dtype=torch.int32, device="cuda")
            positions = torch.arange(count, device="cuda")
            for case, (temperature, top_k, top_p) in CASES.items():
                state = SamplingRows(
                    temperature=torch.full((count,), temperature, device="cuda"),
                    top_k=torch.full((count,), top_k, dtype=torch.int32, device="cuda"),
                    top_p=torch.full((count,), top_p, device="cuda"),
                    min_p=torch.zeros(count, device="cuda"),
                    seeds=torch.arange(count, device="cuda"),
                    last_tokens=torch.zeros(count, dtype=torch.int64, device="cuda"),
                )
                us = microseconds(
                    lambda _, asked=(logits, rows, positions, state): ops.sample(*asked)
                )
                print(
                    f"vocabulary {vocab:>7}  rows {count:>4}  {case:<20} {us:>9.2f} us", flush=True
                )
                found.append({"vocab": vocab, "rows": count, "case": case, "us": us})
                if arguments.out:
                    arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
