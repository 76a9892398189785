"""Where a decode step's time goes: the host's phases, and every kernel of the GPU.

    python benchmarks/profile_step.py --tokenizer FOLDER --model qwen --batches 1,32,256

For each batch size: all prompts are prefilled, then decode steps are timed twice, once with clocks
around the engine's phases and once under torch.profiler (which slows the host: its host times do
not count). Prints short tables, writes everything as JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.extend(str(Path(__file__).resolve().parents[1] / name) for name in ("server", "kernels"))

from benchmarks.rows import results
from benchmarks.rows.client import percentile
from benchmarks.rows.drive import add_all
from benchmarks.rows.workloads import MODELS, model, random_prompts
from benchmarks.servers import ROOT

WARM_STEPS = 10
"""After the last prefill: the queue between host and device has filled."""

TOP_KERNELS = 25
_NAME_WIDTH = 64

Interval = tuple[float, float]


class Phases:
    """Nanoseconds of each call of an engine's phases, by name, while it is in force.

    Wraps the methods of one core's own objects and takes the wrappers off again.
    """

    def __init__(self, core: Any) -> None:
        self.nanoseconds: dict[str, list[int]] = defaultdict(list)
        # Order of a step: the scheduler decides, the runner launches and waits, the scheduler
        # takes the tokens; `step` is all of it with what lies between.
        self._wrapped = [
            (core.scheduler, "schedule"),
            (core.runner, "launch"),
            (core.runner, "wait"),
            (core.scheduler, "update"),
            (core, "step"),
        ]

    def __enter__(self) -> Phases:
        for owner, name in self._wrapped:
            setattr(owner, name, self._timed(name, getattr(owner, name)))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name in self._wrapped:
            delattr(owner, name)  # the class's method shows again

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        times = self.nanoseconds[name]
        clock = time.perf_counter_ns

        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            try:
                return method(*args, **kwargs)
            finally:
                times.append(clock() - began)

        return timed


def spread(nanoseconds: Iterable[int]) -> dict[str, float]:
    """Microseconds: median, mean, 99th percentile; and how many calls there were."""
    values = [each / 1e3 for each in nanoseconds]
    if not values:
        return {"calls": 0}
    return {
        "median_us": statistics.median(values),
        "mean_us": statistics.mean(values),
        "p99_us": percentile(values, 0.99),
        "calls": len(values),
    }


def busy(intervals: Iterable[Interval]) -> float:
    """Length of the union: kernels that run side by side count once."""
    total, end = 0.0, float("-inf")
    for first, last in sorted(intervals):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def kernel_table(kernels: list[tuple[str, float, float]], steps: int) -> list[dict[str, Any]]:
    """Per step, by name: microseconds, launches; the most time first. `kernels`: name, start,
    duration.
    """
    times: dict[str, list[float]] = defaultdict(list)
    for name, _, duration in kernels:
        times[name].append(duration)
    table = [
        {
            "name": name,
            "us_per_step": sum(each) / steps,
            "launches_per_step": len(each) / steps,
            "us_each": statistics.mean(each),
        }
        for name, each in times.items()
    ]
    return sorted(table, key=lambda row: -row["us_per_step"])


def launches_per_layer(table: list[dict[str, Any]], layers: int) -> int:
    """Kernels that every layer starts: whole multiples of the number of layers, summed."""
    return sum(int(row["launches_per_step"] / layers + 1e-6) for row in table)


def profile_batch(llm: Any, shape: Any, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Host phases and kernels of decode steps of `batch` rows. The requests are aborted after."""
    core = llm.core
    # The first ones decode while the others' prompts are computed, a few hundred tokens a step.
    tokens = WARM_STEPS + args.steps + args.profiled + 20 + batch * args.context // 256
    prompts = random_prompts(core.ready.vocab_size, [args.context] * batch, batch)
    names = add_all(core, prompts, [tokens] * batch)
    try:
        waiting = set(names)
        while waiting:
            report = core.step()
            waiting -= {output.request_id for output in report.outputs} if report else set()
        for _ in range(WARM_STEPS):
            core.step()
        with Phases(core) as phases:
            began = time.perf_counter()
            for _ in range(args.steps):
                core.step()
            wall = time.perf_counter() - began
        host = {name: spread(times) for name, times in phases.nanoseconds.items()}
        kernels = record_kernels(core, args.profiled)
    finally:
        core.abort(names)
        while core.has_work:
            core.step()
    first = min((start for _, start, _ in kernels), default=0.0)
    last = max((start + duration for _, start, duration in kernels), default=0.0)
    table = kernel_table(kernels, args.profiled)
    layers = shape.config.get("num_hidden_layers") or shape.config["n_layer"]
    working = ("schedule", "launch", "update")
    return {
        "batch": batch,
        "context": args.context,
        "step_us": wall / args.steps * 1e6,
        "host_us": sum(host[name].get("mean_us", 0.0) for name in working),
        "host": host,
        "gpu_busy_us": busy((s, s + d) for _, s, d in kernels) / args.profiled,
        "gpu_span_us": (last - first) / args.profiled,
        "launches_per_step": len(kernels) / args.profiled,
        "launches_per_layer": launches_per_layer(table, layers),
        "kernels": table,
    }


def record_kernels(core: Any, steps: int) -> list[tuple[str, float, float]]:
    """Name, start and duration (us) of everything the device ran in `steps` steps.

    On a CPU: of torch's operators, so that a rehearsal has something to show.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available() and core.ready.device != "cpu"
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            core.step()
        if on_gpu:
            torch.cuda.synchronize()
    wanted = "CUDA" if on_gpu else "CPU"
    return [
        (event.name, event.time_range.start, event.time_range.elapsed_us())
        for event in profiler.events()
        if event.device_type.name == wanted
    ]


def shown(found: dict[str, Any]) -> str:
    host = "  ".join(
        f"{name} {found['host'][name].get('median_us', 0.0):.0f}"
        for name in ("schedule", "launch", "wait", "update", "step")
    )
    lines = [
        f"batch {found['batch']}, context {found['context']}: {found['step_us']:.0f} us a step; "
        f"host {found['host_us']:.0f} us; GPU busy {found['gpu_busy_us']:.0f} of "
        f"{found['gpu_span_us']:.0f} us (profiled)",
        f"  medians, us: {host}",
        f"  {found['launches_per_step']:.0f} launches a step, "
        f"{found['launches_per_layer']} of them a layer",
    ]
    for row in found["kernels"][:TOP_KERNELS]:
        lines.append(
            f"  {row['us_per_step']:>9.1f} us {row['launches_per_step']:>7.1f} x "
            f"{row['us_each']:>8.2f}  {row['name'][:_NAME_WIDTH]}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=list(MODELS), default="qwen")
    parser.add_argument("--batches", default="1,32,256")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--steps", type=int, default=60, help="timed")
    parser.add_argument("--profiled", type=int, default=10, help="steps under the profiler")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="JSON; default .cache/profile-MODEL.json")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    args = parser.parse_args()
    out = args.out or ROOT / ".cache" / f"profile-{args.model}.json"

    from octavo_server import LLM

    shape = model(args.model, tiny=args.tiny)
    with tempfile.TemporaryDirectory() as folder:
        made = shape.write(Path(folder), args.tokenizer)
        llm = LLM(str(made), **shape.settings())
    result: dict[str, Any] = {"model": shape.name, "machine": results.machine(), "batches": []}
    for batch in map(int, args.batches.split(",")):
        try:
            result["batches"].append(profile_batch(llm, shape, batch, args))
        except Exception as error:  # the other batch sizes are worth having
            print(f"batch {batch}: {type(error).__name__}: {error}", flush=True)
            continue
        print(shown(result["batches"][-1]), flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
