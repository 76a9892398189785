"""`--gpu-memory-utilization` asked for and measured by the driver, for each GPU of an engine.

    PYTHONPATH=server:kernels:operator:. python3 benchmarks/utilization.py MODEL [--tp 2] \\
        [--out FILE]

Per share one engine in a process of its own, on cards that nobody else uses. Before the driver is
asked it has computed steps in every decode bucket that has a graph, a step of as many prompt tokens
as it takes, and each kind of draw. The share excludes the CUDA context and the driver's own (about
0.6 GiB), as with vLLM: they were in use before the engine's first allocation, and are a column of
their own. 15 s a share.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SHARES = (0.3, 0.5, 0.7, 0.9)
GIB = 1 << 30
DRAWS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.8, "seed": 1},
    {"temperature": 0.8, "top_k": 50},
    {"temperature": 0.8, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 0.8, "repetition_penalty": 1.2, "presence_penalty": 0.5},
    {"temperature": 0.0, "logprobs": 20},
    {"temperature": 0.0, "logit_bias": {5: 2.0}},
)


def driver_bytes() -> list[tuple[int, int]]:
    """(used, total) of each GPU."""
    command = [
        "nvidia-smi",
        "--query-gpu=memory.used,memory.total",
        "--format=csv,noheader,nounits",
    ]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    pairs = (line.split(",") for line in lines)
    return [(int(used) << 20, int(total) << 20) for used, total in pairs]


def work(model: str, tp: int, share: float) -> None:
    """In the engine's process: everything, then what the driver says, as a line of JSON."""
    import torch

    from octavo_server import LLM, SamplingParams
    from octavo_server.engine.graphs import row_buckets

    before = driver_bytes()
    torch.empty(1, device="cuda:0")
    context = driver_bytes()[0][0] - before[0][0]  # other ranks' processes have one like it
    llm = LLM(
        model, load_format="dummy", tensor_parallel_size=tp, gpu_memory_utilization=share,
        max_model_len=2048,
    )  # fmt: skip
    vocab, most = llm.core.ready.vocab_size, llm.core.ready.max_num_seqs
    made = 0

    def prompts(count: int, length: int) -> list[list[int]]:
        nonlocal made
        made += 1
        return [[(made * 7919 + i * 131 + j * 17) % vocab for j in range(length)]
                for i in range(count)]  # fmt: skip

    def run(asked: list[list[int]], params: SamplingParams) -> None:
        for made in llm.generate(asked, params):
            if made.outputs[0].error is not None:
                raise RuntimeError(made.outputs[0].error)

    for rows in row_buckets(most):
        run(prompts(rows, 4), SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True))
    step_tokens = llm.core.scheduler.config.max_step_tokens
    run(prompts(-(-step_tokens // 2000), 2000), SamplingParams(temperature=0.0, max_tokens=2))
    for asked in DRAWS:
        run(prompts(64, 8), SamplingParams(max_tokens=3, ignore_eos=True, **asked))
    found = [
        {"gpu": rank, "used": used - before[rank][0], "total": total, "context": context}
        for rank, (used, total) in list(enumerate(driver_bytes()))[:tp]
    ]
    print(json.dumps({"asked": share, "tp": tp, "gpus": found}), flush=True)
    llm.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--out", type=Path, help="JSON of what is printed")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.model, arguments.tp, arguments.shares[0])
        return
    print(f"{'asked':>6} {'GPU':>4} {'measured':>9} {'GiB':>7} {'context GiB':>12}")
    results = []
    for share in arguments.shares:
        command = [sys.executable, __file__, arguments.model, "--tp", str(arguments.tp)]
        command += ["--shares", str(share), "--work"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        results.append(found)
        for gpu in found["gpus"]:
            own = gpu["used"] - gpu["context"]
            print(
                f"{share:>6} {gpu['gpu']:>4} {own / gpu['total']:>9.3f} {own / GIB:>7.2f} "
                f"{gpu['context'] / GIB:>12.2f}",
                flush=True,
            )
        if arguments.out:
            arguments.out.write_text(json.dumps({"model": arguments.model, "runs": results}) + "\n")


if __name__ == "__main__":
    main()
