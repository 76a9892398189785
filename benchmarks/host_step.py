"""What the host does in a decode step, with the engine as it is and a device that answers at once.

    python benchmarks/host_step.py --rows 1,32,128,256

Needs no GPU. Everything but the device runs: scheduling, the packet, the choice of a graph, taking
the tokens in, and msgpack of what goes to the API process (`encode`). Requests stream, as over
HTTP; with `--quiet` they do not, as offline.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.extend(str(Path(__file__).resolve().parents[1] / name) for name in ("server", "kernels"))

from benchmarks.profile_step import Phases, spread

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 1024,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "eos_token_id": 2,
    "tie_word_embeddings": True,
    "dtype": "float32",
}


class InstantGraphs:
    """Stands for the graphs of decode steps: "replayed" at once."""

    def __init__(self, most_rows: int) -> None:
        self._token_ids = torch.arange(most_rows) + 3

    def has(self, *_: int) -> bool:
        return True

    def replay(self, *_: int) -> torch.Tensor:
        return self._token_ids


def make_core(most_rows: int) -> Any:
    from octavo_server.config import EngineConfig
    from octavo_server.engine.build import build_engine

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        config = EngineConfig(
            model=folder, load_format="dummy", device="cpu", dtype="float32", max_model_len=4096,
            max_num_seqs=most_rows, kv_cache_memory_bytes=256 << 20, async_scheduling=True,
        )  # fmt: skip
        return build_engine(config, lambda _: None)


def measure(core: Any, rows: int, context: int, steps: int, stream: bool) -> dict[str, Any]:
    """Microseconds of each phase of decode steps; the requests are aborted after."""
    from octavo_server.engine.messages import Add
    from octavo_server.sampling_params import SamplingParams

    names = [f"{rows}-{index}-{time.monotonic_ns()}" for index in range(rows)]
    params = SamplingParams(max_tokens=3000, ignore_eos=True, temperature=0.0, seed=0)
    for index, name in enumerate(names):
        prompt = [3 + (index * 7 + place) % 1000 for place in range(context)]
        core.add(Add(name, prompt, params, 0.0, stream=stream))
    graphs, core.runner._graphs = core.runner._graphs, None
    try:
        while core.scheduler.waiting or any(
            not each.num_output_tokens for each in core.scheduler.running
        ):
            core.step()
        core.runner._graphs = SimpleNamespace(whole=InstantGraphs(rows))
        for _ in range(20):
            core.step()
        encoder = msgspec.msgpack.Encoder()
        encoded = []
        with Phases(core) as phases:
            for _ in range(steps):
                report = core.step()
                began = time.perf_counter_ns()
                encoder.encode(report)
                encoded.append(time.perf_counter_ns() - began)
    finally:
        core.abort(names)
        while core.has_work:
            core.step()
        core.runner._graphs = graphs
    return {
        name: spread(times)["median_us"]
        for name, times in {**phases.nanoseconds, "encode": encoded}.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", default="1,32,128,256")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3, help="the least median is shown")
    parser.add_argument("--quiet", action="store_true", help="requests that do not stream")
    args = parser.parse_args()
    sizes = [int(each) for each in args.rows.split(",")]
    core = make_core(max(sizes))
    columns = ("schedule", "launch", "wait", "update", "step", "encode")
    print(f"{'rows':>5}" + "".join(f"{name:>10}" for name in columns) + "   us")
    for rows in sizes:
        found = [
            measure(core, rows, args.context, args.steps, not args.quiet)
            for _ in range(args.repeats)
        ]
        least = {name: min(each[name] for each in found) for name in columns}
        print(f"{rows:>5}" + "".join(f"{least[name]:>10.1f}" for name in columns), flush=True)


if __name__ == "__main__":
    main()
