"""The rows of the all-reduce: `benchmarks/kernels/all_reduce.py`, read from what it writes.

python -m benchmarks.rows.collectives --tp 2 --scenarios allreduce
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.rows.reporting import note, sample, scenario
from benchmarks.servers import ROOT

ROWS = {8 << 10: "allreduce_8k", 256 << 10: "allreduce_256k"}

ENGINE = "nccl" if os.environ.get("OCTAVO_ALL_REDUCE") == "nccl" else "words"
"""The column that is what the engine calls (distributed/torch_group.py, peer_group.py); "words"
includes the addition to the residual."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenarios", required=True)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    with scenario(args.scenarios), tempfile.TemporaryDirectory() as folder:
        if args.tiny:
            raise RuntimeError("needs GPUs")
        for repeat in range(min(args.repeats, 2)):
            out = Path(folder) / f"{repeat}.json"
            program = ROOT / "benchmarks" / "kernels" / "all_reduce.py"
            command = [sys.executable, str(program), "--ranks", str(args.tp), "--out", str(out)]
            subprocess.run(command, check=True, stdout=sys.stderr)
            for line in json.loads(out.read_text())["rows"]:
                if row := ROWS.get(line["bytes"]):
                    sample(row, line["us"][ENGINE])
                    note(row, microseconds=line["us"])


if __name__ == "__main__":
    main()
