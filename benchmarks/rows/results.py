"""The JSON of a benchmark: rows from samples, files merged, a table for people."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.rows.parallel import RELATIVE, rows_at
from benchmarks.rows.specification import Row

Result = dict[str, Any]
"""{"machine": {...}, "commit", "versions": {...}, "rows": [row_entry(...), ...]}"""


class CannotMerge(Exception):
    """Two results are not of one GPU model and one commit; the text says which differs."""


def row_entry(
    row: Row, samples: Sequence[float], facts: dict[str, Any], error: str | None
) -> dict[str, Any]:
    """A row as the file has it: the median, the spread of all repeats, vLLM's recorded figure."""
    value = statistics.median(samples) if samples else None
    entry: dict[str, Any] = {
        "id": row.id,
        "value": value,
        "unit": row.unit,
        "spread": [min(samples), max(samples)] if samples else None,
        "vllm": row.vllm,
        "must": row.must,
        "aim": row.aim,
        "verdict": row.verdict(value),
        "repeats": len(samples),
        "samples": list(samples),
    }
    if row.tp > 1:
        entry["tp"] = row.tp
    if facts:
        entry["facts"] = facts
    if error is not None:
        entry["error"] = error
    return entry


def merge(one: Result, other: Result) -> Result:
    """`one`'s rows, replaced by those of `other` that have a value or that `one` lacks.

    Raises CannotMerge unless both are of the same GPU model and the same commit.
    """
    for what, left, right in (
        ("GPU models", one["machine"].get("gpu"), other["machine"].get("gpu")),
        ("commits", one["commit"], other["commit"]),
    ):
        if left != right:
            raise CannotMerge(f"the results are of different {what}: {left} and {right}")
    rows = {_key(entry): entry for entry in one["rows"]}
    for entry in other["rows"]:
        if entry["value"] is not None or _key(entry) not in rows:
            rows[_key(entry)] = entry
    ordered = sorted(rows.values(), key=_place)
    return scaled({**one, **other, "rows": ordered})


def scaled(result: Result) -> Result:
    """With each row of several GPUs beside the same row of one, where the result has both."""
    alone = {entry["id"]: entry["value"] for entry in result["rows"] if entry.get("tp", 1) == 1}
    rows = []
    for entry in result["rows"]:
        tp, one, value = entry.get("tp", 1), alone.get(entry["id"]), entry["value"]
        if tp > 1 and one and value:
            row = row_of(entry)
            times = value / one if row.better == "higher" else one / value
            entry = {**entry, "times_one_gpu": round(times, 3), "efficiency": round(times / tp, 3)}
            if entry["id"] in RELATIVE:
                must, aim = (part * one for part in RELATIVE[entry["id"]])
                bounded = dataclasses.replace(row, must=must, aim=aim)
                entry |= {"must": must, "aim": aim, "verdict": bounded.verdict(value)}
        rows.append(entry)
    return {**result, "rows": rows}


def row_of(entry: dict[str, Any]) -> Row:
    """The row of which this is the figure, with the bounds that the file has."""
    row = rows_at(entry.get("tp", 1))[entry["id"]]
    return dataclasses.replace(row, must=entry["must"], aim=entry["aim"])


def _key(entry: dict[str, Any]) -> tuple[str, int]:
    return entry["id"], entry.get("tp", 1)


def _place(entry: dict[str, Any]) -> tuple[int, int]:
    tp = entry.get("tp", 1)
    return tp, list(rows_at(tp)).index(entry["id"])


def read(path: Path) -> Result:
    found: Result = json.loads(path.read_text(encoding="utf-8"))
    return found


def write(result: Result, path: Path) -> None:
    """Whole or not at all: a run that is killed leaves the rows it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def table(result: Result) -> str:
    """Octavo beside vLLM's recorded figures; `x` is how many times as good as vLLM."""
    head = f"{'row':<20}{'Octavo':>10} {'unit':<10}{'[min - max]':>20}{'n':>3}"
    head += f"{'vLLM*':>10}{'x':>6}{'must':>9}{'aim':>9}  verdict"
    lines = [head, "-" * len(head)]
    for entry in result["rows"]:
        row = row_of(entry)
        value = entry["value"]
        spread = "-" if value is None else " - ".join(_figure(each) for each in entry["spread"])
        times = None if value is None else row.times_vllm(value)
        name = row.id if row.tp == 1 else f"{row.id} tp{row.tp}"
        line = f"{name:<20}{_figure(value):>10} {row.unit:<10}{spread:>20}{entry['repeats']:>3}"
        line += f"{_figure(row.vllm):>10}{'-' if times is None else f'{times:.2f}':>6}"
        line += f"{_figure(row.must):>9}{_figure(row.aim):>9}  {entry['verdict']}"
        lines.append(line)
        if entry.get("error"):
            lines.append(f"    error: {entry['error'].splitlines()[0][:90]}")
    lines.append(
        "* recorded before on the same GPU model (vLLM 0.26.0, its defaults), not run here"
    )
    return "\n".join(lines)


def markdown(result: Result) -> str:
    """The table for the README and docs/performance.md."""
    lines = [
        "| row | Octavo | [min-max] | vLLM 0.26.0, recorded | times as good | must | aim |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in result["rows"]:
        row, value = row_of(entry), entry["value"]
        times = None if value is None else row.times_vllm(value)
        spread = "-" if value is None else "-".join(_figure(each) for each in entry["spread"])
        cells = [
            f"`{row.id}`: {row.title}" + (f", {row.tp} GPUs" if row.tp > 1 else ""),
            f"**{_figure(value)}** {row.unit}",
            f"{spread} ({entry['repeats']})",
            _figure(row.vllm),
            "-" if times is None else f"{times:.2f}",
            _figure(row.must),
            _figure(row.aim),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    """Four digits or so, and whole numbers where they are large."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def commit_here(root: Path) -> str:
    """$OCTAVO_COMMIT, else what git says of `root` ("+changes" if files differ from it)."""
    if given := os.environ.get("OCTAVO_COMMIT"):
        return given
    try:
        head = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
        changed = _output(["git", "-C", str(root), "status", "--porcelain"])
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+changes" if changed else "")


@functools.cache
def machine() -> dict[str, Any]:
    """The GPU by nvidia-smi, or torch where there is none; without a GPU, the CPU alone."""
    found: dict[str, Any] = {"gpu": None, "cores": os.cpu_count()}
    try:
        line = _output(
            ["nvidia-smi", "--query-gpu=name,power.limit,driver_version,clocks.max.sm",
             "--format=csv,noheader,nounits", "--id=0"]
        )  # fmt: skip
        name, power, driver, clock = (part.strip() for part in line.split(","))
        found |= {"gpu": name, "power_cap_watts": power, "driver": driver, "sm_mhz_max": clock}
    except (OSError, subprocess.SubprocessError, ValueError):
        # In a process of its own: a context here would take memory from the engines.
        code = "import torch; print(torch.cuda.get_device_name())"
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            found["gpu"] = _output([sys.executable, "-c", code])
    return found


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "transformers", "uvicorn", "werkzeug"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _output(argv: list[str]) -> str:
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    return ran.stdout.strip()
