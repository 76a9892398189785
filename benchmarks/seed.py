"""The article's experiment: 50 requests at once, a Flask server around `model.generate` or Octavo.

Same machine, same weights, same dtype, greedy, 50 new tokens for each request. Prints a table and
writes results/seed-DEVICE.json and .png.

    python benchmarks/seed.py                                     # SmolLM2-135M on CPU, bf16
    python benchmarks/seed.py --device cuda --dtype float16 --model FOLDER [--load-format dummy]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.foreign_load import ForeignLoad
from benchmarks.servers import ROOT, ServerFailed, free_port, running

PROMPT = "Tell me about efficient GPU utilization"
WARM_UP_PROMPT = "Name three colours"
RESULTS = Path(__file__).with_name("results")
LOGS = ROOT / ".cache" / "logs"
# Rounding differs with the batch, so greedy answers in 16 bits part at some point; sooner than this
# would mean that the two servers do not compute the same thing.
MIN_AGREEING_TOKENS = 5
GOAL = 10.0
# A round during which others took more of the machine than this does not count, unless all did.
FOREIGN_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Round:
    """One burst: all requests sent at once, the clock stopped at the last answer."""

    wall_seconds: float
    latencies_seconds: list[float]
    texts: list[str]
    foreign_share: float  # of all cores, taken by other processes meanwhile

    @property
    def requests_per_second(self) -> float:
        return len(self.latencies_seconds) / self.wall_seconds


Body = Callable[[str], tuple[str, dict[str, Any]]]  # prompt -> (path, JSON body)


async def burst(url: str, body: Body, prompts: list[str], tokens: int) -> Round:
    """Sends every prompt at once; raises ServerFailed if an answer is not what was asked for."""

    async def ask(session: aiohttp.ClientSession, prompt: str) -> tuple[float, str]:
        path, payload = body(prompt)
        began = time.perf_counter()
        async with session.post(url + path, json=payload) as response:
            answer = await response.json()
        if response.status != 200:
            raise ServerFailed(f"{path} answered {response.status}: {answer}")
        made = answer.get("usage", answer)
        if made["completion_tokens"] != tokens:
            raise ServerFailed(f"{path} made {made['completion_tokens']} tokens, not {tokens}")
        text: str = answer["choices"][0]["text"] if "choices" in answer else answer["text"]
        return time.perf_counter() - began, text

    timeout = aiohttp.ClientTimeout(total=1800)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        foreign, began = ForeignLoad(), time.perf_counter()
        answers = await asyncio.gather(*(ask(session, prompt) for prompt in prompts))
        wall = time.perf_counter() - began
        taken = foreign.share()
    return Round(wall, [seconds for seconds, _ in answers], [text for _, text in answers], taken)


def measure(url: str, body: Body, args: argparse.Namespace, repeats: int) -> list[Round]:
    asyncio.run(burst(url, body, [WARM_UP_PROMPT], args.tokens))
    rounds = []
    for number in range(repeats):
        done = asyncio.run(burst(url, body, [PROMPT] * args.requests, args.tokens))
        print(
            f"  round {number + 1}: {done.wall_seconds:.2f} s, "
            f"{done.foreign_share:.0%} of the machine taken by others",
            file=sys.stderr,
        )
        rounds.append(done)
    return rounds


def sequential(model: Path, args: argparse.Namespace) -> tuple[float, list[Round]]:
    port = free_port()
    script = Path(__file__).with_name("sequential_server.py")
    argv = [sys.executable, str(script), str(model), "--port", str(port), "--dtype", args.dtype]
    argv += ["--device", args.device, "--load-format", args.load_format]

    def body(prompt: str) -> tuple[str, dict[str, Any]]:
        return "/generate", {"prompt": prompt, "max_tokens": args.tokens}

    log = LOGS / "seed-sequential.log"
    with running("flask", argv, port=port, ready_path="/ready", log=log) as server:
        return server.start_seconds, measure(server.url, body, args, args.sequential_repeats)


def octavo(model: Path, args: argparse.Namespace) -> tuple[float, list[Round]]:
    port = free_port()
    argv = [sys.executable, "-m", "octavo_server.cli", "serve", str(model), "--port", str(port)]
    argv += ["--host", "127.0.0.1", "--device", args.device, "--dtype", args.dtype]
    argv += ["--load-format", args.load_format, "--served-model-name", "seed"]
    argv += ["--max-model-len", "1024", *args.octavo_arg]

    def body(prompt: str) -> tuple[str, dict[str, Any]]:
        settings = {"max_tokens": args.tokens, "temperature": 0, "ignore_eos": True}
        return "/v1/completions", {"model": "seed", "prompt": prompt, **settings}

    log = LOGS / "seed-octavo.log"
    with running("octavo", argv, port=port, ready_path="/ready", log=log) as server:
        return server.start_seconds, measure(server.url, body, args, args.repeats)


def agreeing_tokens(model: Path, one: str, other: str) -> int:
    """Length of the common beginning of two answers, in tokens of the model's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    pairs = zip(tokenizer(one).input_ids, tokenizer(other).input_ids, strict=False)
    count = 0
    for left, right in pairs:
        if left != right:
            break
        count += 1
    return count


def summary(start_seconds: float, rounds: list[Round], tokens: int) -> dict[str, Any]:
    quiet = [done for done in rounds if done.foreign_share <= FOREIGN_SHARE]
    counted = quiet or rounds
    rates = [done.requests_per_second for done in counted]
    latencies = sorted(seconds for done in counted for seconds in done.latencies_seconds)
    return {
        "rounds_counted": f"{len(counted)} of {len(rounds)}",
        "disturbed": not quiet,
        "requests_per_second_median": statistics.median(rates),
        "requests_per_second": rates,
        "output_tokens_per_second_median": statistics.median(rates) * tokens,
        "wall_seconds": [done.wall_seconds for done in counted],
        "latency_seconds_p50": statistics.median(latencies),
        "latency_seconds_max": latencies[-1],
        "start_seconds": start_seconds,
        "distinct_answers": len({text for done in rounds for text in done.texts}),
        "rounds": [
            {key: value for key, value in asdict(done).items() if key != "texts"} for done in rounds
        ],
    }


def machine(device: str) -> dict[str, Any]:
    import os

    import psutil
    import torch

    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    found = {}
    for name in ("octavo", "torch", "transformers", "flask", "werkzeug"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def table(result: dict[str, Any]) -> str:
    lines = [f"{'server':<32}{'requests/s':>12}{'tokens/s':>10}{'p50 s':>9}{'max s':>9}"]
    for name, label in (("sequential", "Flask + generate, one at a time"), ("octavo", "Octavo")):
        row = result[name]
        lines.append(
            f"{label:<32}{row['requests_per_second_median']:>12.2f}"
            f"{row['output_tokens_per_second_median']:>10.0f}"
            f"{row['latency_seconds_p50']:>9.2f}{row['latency_seconds_max']:>9.2f}"
        )
    lines.append(
        f"Octavo / sequential: {result['ratio']:.1f} times the requests/s "
        f"(goal {GOAL:.0f}); the first {result['agreeing_tokens']} tokens agree"
    )
    if any(result[name]["disturbed"] for name in ("sequential", "octavo")):
        lines.append("Other processes disturbed every round of a server: run it on a quiet machine")
    return "\n".join(lines)


def chart(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = ["Flask + model.generate,\none at a time", "Octavo"]
    rates = [result[name]["requests_per_second_median"] for name in ("sequential", "octavo")]
    figure, axes = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
    bars = axes.bar(labels, rates, width=0.55, color=["#9aa5b1", "#1f6feb"])
    axes.bar_label(bars, [f"{rate:.2f}" for rate in rates], padding=3)
    axes.set_ylabel("requests / s")
    axes.set_ylim(0, max(rates) * 1.15)
    axes.spines[["top", "right"]].set_visible(False)
    settings = result["settings"]
    where = result["machine"]["gpu"] or f"{result['machine']['cores']} CPU cores"
    axes.set_title(
        f"{settings['requests']} requests at once, {settings['tokens']} tokens each\n"
        f"{settings['model']}, {settings['dtype']}, {where}",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="a folder or .gguf; default the demo model")
    parser.add_argument("--load-format", choices=["auto", "dummy"], default="auto")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sequential-repeats", type=int, default=1, help="each is ~100 s on CPU")
    parser.add_argument("--octavo-arg", action="append", default=[], help="as --octavo-arg=--flag")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end as well
    model: Path | None = args.model
    if model is None:
        from examples.fetch_demo_model import demo_model

        model = demo_model()
    name = model.stem
    if model.suffix == ".gguf":
        from benchmarks.dequantise import dequantise

        model = dequantise(model, args.dtype)
    before = machine(args.device)
    try:
        print("Octavo ...", file=sys.stderr)
        octavo_start, octavo_rounds = octavo(model, args)
        print("Flask + model.generate ...", file=sys.stderr)
        sequential_start, sequential_rounds = sequential(model, args)
    except ServerFailed as error:
        sys.exit(f"error: {error}")
    result: dict[str, Any] = {
        "settings": {
            "model": name,
            "prompt": PROMPT,
            **{k: getattr(args, k) for k in ("device", "dtype", "load_format")},
            **{k: getattr(args, k) for k in ("requests", "tokens", "octavo_arg")},
        },
        "machine": before,
        "versions": versions(),
        "sequential": summary(sequential_start, sequential_rounds, args.tokens),
        "octavo": summary(octavo_start, octavo_rounds, args.tokens),
    }
    rates = [result[name]["requests_per_second_median"] for name in ("octavo", "sequential")]
    result["ratio"] = rates[0] / rates[1]
    answers = octavo_rounds[0].texts[0], sequential_rounds[0].texts[0]
    result["agreeing_tokens"] = agreeing_tokens(model, *answers)
    result["answers"] = dict(zip(("octavo", "sequential"), answers, strict=True))
    args.output.mkdir(parents=True, exist_ok=True)
    stem = args.output / f"seed-{args.device}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    chart(result, stem.with_suffix(".png"))
    print(table(result))
    if args.load_format != "dummy" and result["agreeing_tokens"] < MIN_AGREEING_TOKENS:
        sys.exit("error: the two servers' answers do not agree: the comparison means nothing")


if __name__ == "__main__":
    main()
