"""The sampler's time by rows, vocabulary and what the rows ask for.

    PYTHONPATH=server:kernels:operator:. python3 benchmarks/kernels/sampling.py [--out FILE]

Microseconds of one call inside a CUDA graph of 24 calls, each at positions of its own, all rows
asking for the same. Logits are normal in the model's dtype; "spread" is their deviation: 0.05 is
nearly flat (the nucleus is most of the vocabulary), 2 leaves top-p 0.95 thousands of ids, 6 a few.
"slowest" is the slowest of eight graphs with other noise: whose first draws fell outside the
nucleus. Needs an H100; under 20 s once the kernels are compiled.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from linear import microseconds  # beside this file

from octavo_kernels.ops import SamplingRows, select_ops

VOCABULARIES = {50_257: torch.float16, 151_936: torch.bfloat16}
ROWS = (1, 32, 256)
# name: temperature, top_k, top_p, spread of the logits
CASES = {
    "greedy": (0.0, 0, 1.0, 2.0),
    "T 0.6": (0.6, 0, 1.0, 2.0),
    "T 0.8, k 50, p 0.9": (0.8, 50, 0.9, 2.0),
    "p 0.95": (1.0, 0, 0.95, 2.0),
    "p 0.95, peaked": (1.0, 0, 0.95, 6.0),
    "p 0.95, flat": (1.0, 0, 0.95, 0.05),
    "p 0.5, flat": (1.0, 0, 0.5, 0.05),
}
NOISES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON, a list of what is printed")
    arguments = parser.parse_args()
    ops = select_ops("cuda")
    found = []
    print(f"{'vocabulary':>10} {'rows':>5}  {'case':<20} {'median us':>10} {'slowest':>8}")
    for vocab, dtype in VOCABULARIES.items():
        for count in ROWS:
            normal = torch.randn(count, vocab, device="cuda")
            rows = torch.arange(count, dtype=torch.int32, device="cuda")
            for case, (temperature, top_k, top_p, spread) in CASES.items():
                logits = (normal * spread).to(dtype)
                times = []
                for noise in range(NOISES if top_p < 1 else 1):
                    state = SamplingRows(
                        temperature=torch.full((count,), temperature, device="cuda"),
                        top_k=torch.full((count,), top_k, dtype=torch.int32, device="cuda"),
                        top_p=torch.full((count,), top_p, device="cuda"),
                        min_p=torch.zeros(count, device="cuda"),
                        seeds=torch.arange(count, device="cuda") + 1000 * noise,
                        last_tokens=torch.zeros(count, dtype=torch.int64, device="cuda"),
                    )
                    places = torch.arange(64, device="cuda")[:, None].repeat(1, count)
                    times.append(
                        microseconds(
                            lambda i, asked=(logits, rows), places=places, state=state: ops.sample(
                                *asked, places[i], state
                            )
                        )
                    )
                us, slowest = statistics.median(times), max(times)
                print(f"{vocab:>10} {count:>5}  {case:<20} {us:>10.2f} {slowest:>8.2f}", flush=True)
                found.append(
                    {"vocab": vocab, "rows": count, "case": case, "us": us, "slowest": slowest}
                )
                if arguments.out:
                    arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
