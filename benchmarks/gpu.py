"""Octavo's speed on one GPU, row by row, beside what vLLM reached on the same GPU model.

    python benchmarks/gpu.py --tokenizer FOLDER                 # every row, in under 9 minutes
    python benchmarks/gpu.py --tokenizer FOLDER --rows llama,s1_50
    python benchmarks/gpu.py --tokenizer FOLDER --tp 2          # rows of two GPUs of one host
    python benchmarks/gpu.py --merge A.json B.json              # runs of one commit and GPU model
    python benchmarks/gpu.py --plot                             # the pictures, from the JSON alone
    python benchmarks/gpu.py --tokenizer FOLDER --tiny          # a rehearsal on a CPU

FOLDER holds a tokenizer.json; which one does not matter for speed (vLLM's figures were taken with
SmolLM2's). The JSON is written after each scenario; a row that fails or hangs is reported and the
others go on. The exit code is 1 if a row has no value.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rows import plots, results
from benchmarks.rows.groups import group_argv, run_group
from benchmarks.rows.parallel import rows_at
from benchmarks.rows.specification import (
    GROUPS,
    ROWS,
    SCENARIOS,
    Row,
    Scenario,
    choose,
    estimate_seconds,
    scenarios_of,
)
from benchmarks.rows.workloads import MODELS, model
from benchmarks.servers import ROOT

RESULTS = Path(__file__).with_name("results")
DEFAULT_OUT = RESULTS / "gpu-h100.json"
TINY_OUT = ROOT / ".cache" / "gpu-tiny.json"
LOGS = ROOT / ".cache" / "logs"

GRACE_SECONDS = 20
"""Past --limit for a scenario that takes longer than its estimate; then it is ended."""


class Collected:
    """Samples and failures of the chosen rows, written to the file as they come."""

    def __init__(self, rows: list[Row], before: results.Result | None, out: Path, commit: str):
        self._rows = rows
        self._before = before
        self._out = out
        self._samples: dict[str, list[float]] = {row.id: [] for row in rows}
        self._facts: dict[str, dict[str, Any]] = {row.id: {} for row in rows}
        self._errors: dict[str, str] = {}
        self._begun: set[str] = set()
        self._began = time.monotonic()
        self._head: results.Result = {
            "machine": results.machine(),
            "commit": commit,
            "versions": results.versions(),
        }

    def listen(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "begin":
            self._begun.add(event["scenario"])
            self._began = time.monotonic()
        elif kind == "sample" and event["row"] in self._samples:
            self._samples[event["row"]].append(event["value"])
        elif kind == "note" and event["row"] in self._facts:
            self._facts[event["row"]] |= event["facts"]
        elif kind == "end":
            self._end(event["scenario"], event["error"])

    def _end(self, scenario: str, error: str | None) -> None:
        self._begun.add(scenario)
        seconds = time.monotonic() - self._began
        rows = [row for row in self._rows if row.scenario == scenario]
        for row in rows:
            if error is None and not self._samples[row.id]:
                error = "no sample came"
            if error is not None:
                self._errors[row.id] = error
        shown = [f"{row.id} {self._shown(row)}" for row in rows]
        print(f"[{seconds:6.1f} s] {scenario}: {', '.join(shown)}", file=sys.stderr, flush=True)
        if error is not None:
            print(f"           error: {error}", file=sys.stderr, flush=True)
        results.write(self.result(), self._out)

    def _shown(self, row: Row) -> str:
        value = results.row_entry(row, self._samples[row.id], {}, None)["value"]
        return "-" if value is None else f"{value:.4g} {row.unit}"

    def result(self) -> results.Result:
        """What is known by now, merged with what the file held before if that fits."""
        entries = [
            results.row_entry(
                row, self._samples[row.id], self._facts[row.id], self._errors.get(row.id)
            )
            for row in self._rows
            if row.scenario in self._begun
        ]
        now = {**self._head, "rows": entries}
        return results.scaled(now) if self._before is None else results.merge(self._before, now)


def measure(args: argparse.Namespace) -> results.Result:
    rows = choose([part for part in (args.rows or "").split(",") if part], rows_at(args.tp))
    groups = scenarios_of(rows)
    estimate = estimate_seconds(groups)
    print(
        f"{len(rows)} rows in {len(groups)} groups, about {estimate / 60:.1f} minutes on an H100",
        file=sys.stderr,
    )
    commit = args.commit or results.commit_here(ROOT)
    collected = Collected(rows, earlier(args.out, commit), args.out, commit)
    options = ["--repeats", str(args.repeats), *(["--tiny"] if args.tiny else [])]
    options += ["--tp", str(args.tp)] if args.tp > 1 else []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="octavo-bench-") as folder:
        folders = {
            key: model(key, tiny=args.tiny).write(Path(folder), args.tokenizer) for key in MODELS
        }
        for group, scenarios in groups.items():
            fits, error = fitting(group, scenarios, args.limit - (time.monotonic() - began))
            for scenario in scenarios[len(fits) :]:
                collected.listen({"event": "end", "scenario": scenario.id, "error": error})
            extra = ["--engine-only"] if args.engine_only and group.startswith("offline") else []
            argv = group_argv(group, folders, args.logs, [*options, *extra])
            print(f"{group} ...", file=sys.stderr, flush=True)
            log = args.logs / f"bench-{group}.log"
            run_group(argv, fits, log, collected.listen, began + args.limit + GRACE_SECONDS)
    print(f"{time.monotonic() - began:.0f} s in all", file=sys.stderr)
    return collected.result()


def fitting(group: str, scenarios: list[Scenario], left: float) -> tuple[list[Scenario], str]:
    """The first scenarios of a group that fit into the seconds left, and what to say of others."""
    error = f"not run: {max(0.0, left):.0f} s of --limit were left when its group began"
    left -= GROUPS[group]
    for count, scenario in enumerate(scenarios):
        left -= scenario.estimate_seconds
        if left < 0:
            return scenarios[:count], error
    return scenarios, error


def earlier(path: Path, commit: str) -> results.Result | None:
    """The file's result if this run's rows may be merged into it, else None (it is replaced)."""
    if not path.exists():
        return None
    found = results.read(path)
    mine = {**found, "machine": results.machine(), "commit": commit, "rows": []}
    try:
        results.merge(found, mine)
    except results.CannotMerge as error:
        print(f"{path} is replaced: {error}", file=sys.stderr)
        return None
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=f"rows: {', '.join(ROWS)}; {len(SCENARIOS)} scenarios",
    )
    parser.add_argument("--rows", help="ids or beginnings of ids, separated by commas")
    parser.add_argument("--tp", type=int, choices=[1, 2], default=1, help="GPUs of an engine")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokenizer", type=Path, help="a folder with tokenizer.json")
    parser.add_argument("--out", type=Path, help=f"default {DEFAULT_OUT.relative_to(ROOT)}")
    parser.add_argument("--commit", help="default $OCTAVO_COMMIT, else git's")
    parser.add_argument(
        "--limit", type=float, default=540, help="seconds; what would begin too late is left out"
    )
    parser.add_argument("--logs", type=Path, default=LOGS)
    parser.add_argument("--engine-only", action="store_true", help="throughput without text")
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="JSON")
    parser.add_argument("--plot", action="store_true", help="the pictures of --out")
    parser.add_argument("--markdown", action="store_true", help="the table of --out for a page")
    args = parser.parse_args()
    default = TINY_OUT if args.tiny else DEFAULT_OUT
    args.out = args.out or (default if args.tp == 1 else default.with_stem(default.stem + "-tp2"))
    if not (args.merge or args.plot or args.markdown):
        if args.tokenizer is None or not (args.tokenizer / "tokenizer.json").is_file():
            parser.error("--tokenizer FOLDER: a folder that holds a tokenizer.json")
        try:
            choose([part for part in (args.rows or "").split(",") if part], rows_at(args.tp))
        except ValueError as error:
            parser.error(str(error))
    return args


def main() -> None:
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the groups end as well
    try:
        if args.merge:
            result = results.read(args.merge[0])
            for path in args.merge[1:]:
                result = results.merge(result, results.read(path))
            results.write(result, args.out)
        elif args.markdown:
            print(results.markdown(results.read(args.out)))
            return
        elif args.plot:
            result = results.read(args.out)
        else:
            args.logs.mkdir(parents=True, exist_ok=True)
            result = measure(args)
    except results.CannotMerge as error:
        sys.exit(f"error: {error}")
    alone = [entry for entry in result["rows"] if entry.get("tp", 1) == 1]
    if len(alone) < len(result["rows"]):
        print(results.table(result))
        sys.exit(any(entry["value"] is None for entry in result["rows"]))
    for path in plots.draw(result, args.out.with_suffix("")):
        print(path, file=sys.stderr)
    print(results.table(result))
    sys.exit(any(entry["value"] is None for entry in result["rows"]))


if __name__ == "__main__":
    main()
