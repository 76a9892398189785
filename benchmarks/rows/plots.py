"""The pictures of a result, from its JSON alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.rows.results import Result, row_of
from benchmarks.rows.specification import ROWS, Row

OCTAVO, OTHER, RECORDED = "#1f6feb", "#9aa5b1", "#d5dbe1"
_BELOW = "#d4652f"

_RECORDED_FLASK = 1.10
"""requests/s of the sequential server in the recorded runs, if this result did not time it."""


def draw(result: Result, stem: Path) -> list[Path]:
    """STEM-s1.png, STEM-rows.png and, of several GPUs, STEM-scaling.png; a picture whose rows are
    missing is left out."""
    import matplotlib

    matplotlib.use("Agg")
    drawn = []
    found = [(row_of(e), float(e["value"])) for e in result["rows"] if e["value"] is not None]
    several = any(row.tp > 1 for row, _ in found)
    values = {row.id: value for row, value in found if row.tp == 1}
    if "s1_50" in values and not several:
        drawn.append(stem.with_name(stem.name + "-s1.png"))
        _draw_s1(result, values, drawn[-1])
    compared = [(row, value) for row, value in found if row.times_vllm(value) is not None]
    if compared:
        drawn.append(stem.with_name(stem.name + "-rows.png"))
        _draw_rows(result, compared, drawn[-1])
    scaled = [e for e in result["rows"] if e.get("times_one_gpu")]
    if scaled:
        drawn.append(stem.with_name(stem.name + "-scaling.png"))
        _draw_scaling(result, scaled, drawn[-1])
    return drawn


def _draw_s1(result: Result, values: dict[str, float], path: Path) -> None:
    """The article's experiment: the sequential server, Octavo, vLLM as recorded."""
    from matplotlib import pyplot

    vllm = ROWS["s1_50"].vllm
    assert vllm is not None
    timed = "flask_s1" in values
    label = "Flask + model.generate,\none at a time"
    bars = [(label if timed else label + "\n(recorded before)",
             values.get("flask_s1", _RECORDED_FLASK), OTHER if timed else RECORDED)]  # fmt: skip
    if "hf_s1" in values:
        bars.append(("model.generate,\nstatic batch of 50", values["hf_s1"], OTHER))
    bars.append(("vLLM 0.26.0\n(recorded before)", vllm, RECORDED))
    bars.append(("Octavo", values["s1_50"], OCTAVO))
    figure, axes = pyplot.subplots(figsize=(6.6, 3.4), layout="constrained")
    drawn = axes.bar(
        [name for name, _, _ in bars],
        [value for _, value, _ in bars],
        width=0.55,
        color=[colour for _, _, colour in bars],
    )
    for bar, (_, _, colour) in zip(drawn, bars, strict=True):
        if colour == RECORDED:
            bar.set(hatch="///", edgecolor=OTHER)
    labels = [f"{value:.0f}" if value >= 10 else f"{value:.1f}" for _, value, _ in bars]
    axes.bar_label(drawn, labels, padding=3)
    axes.set_ylabel("requests / s")
    axes.set_ylim(0, max(value for _, value, _ in bars) * 1.15)
    axes.tick_params(axis="x", labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"50 requests at once, 50 tokens each\ngpt2-large, fp16, {_where(result)}", fontsize=10
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw_scaling(result: Result, entries: list[dict[str, Any]], path: Path) -> None:
    """Each row of several GPUs by the same row of one GPU."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.6, 0.34 * len(entries) + 1.3), layout="constrained")
    tp = entries[0]["tp"]
    places = list(range(len(entries)))
    bars = axes.barh(places, [e["times_one_gpu"] for e in entries], height=0.6, color=OCTAVO)
    axes.bar_label(bars, [f"{e['times_one_gpu']:.2f}" for e in entries], padding=3, fontsize=8)
    labels = [f"{e['id']}  {_value(e['value'])} {e['unit']}" for e in entries]
    axes.set_yticks(places, labels, fontsize=8)
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.set_xlim(0, max(tp, *(e["times_one_gpu"] for e in entries)) * 1.1)
    for times, style in ((1, "-"), (tp, "--")):
        axes.axvline(times, color="black", linewidth=0.8, linestyle=style)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"times as good as on one of them   ( dashed: {tp})", fontsize=9)
    axes.set_title(f"Octavo at {str(result['commit'])[:10]}, {tp} x {_where(result)}", fontsize=10)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw_rows(result: Result, found: list[tuple[Row, float]], path: Path) -> None:
    """Every row against vLLM's recorded figure: to the right of 1 is better."""
    from matplotlib import pyplot

    rows = [row for row, _ in found]
    figure, axes = pyplot.subplots(figsize=(7.6, 0.3 * len(rows) + 1.3), layout="constrained")
    ratios = [row.times_vllm(value) or 0.0 for row, value in found]
    colours = [_BELOW if row.verdict(value) == "below" else OCTAVO for row, value in found]
    places = list(range(len(rows)))
    axes.barh(places, [ratio - 1 for ratio in ratios], left=1, height=0.6, color=colours)
    for place, row in zip(places, rows, strict=True):
        for bound, marker in ((row.must, "|"), (row.aim, "D")):
            if bound is not None and (position := row.times_vllm(bound)) is not None:
                axes.plot(
                    position, place, marker, color="black",
                    markersize=9 if marker == "|" else 4, zorder=3,
                )  # fmt: skip
    labels = [
        f"{row.id}{f' tp{row.tp}' * (row.tp > 1)}  {_value(value)} {row.unit}"
        for row, value in found
    ]
    axes.set_yticks(places, labels, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
    axes.set_xscale("log")
    bounds = [row.times_vllm(bound) for row in rows for bound in (row.must, row.aim) if bound]
    most = max(*ratios, *(bound for bound in bounds if bound), 1.0)
    least = min(*ratios, 0.9)
    axes.set_xlim(least * 0.92, most * 1.35)
    ticks = [t for t in (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 8, 12, 20) if least * 0.92 <= t <= most]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    for place, ratio in zip(places, ratios, strict=True):
        right = ratio >= 1
        axes.annotate(
            f"{ratio:.2f}", (ratio, place), xytext=(4 if right else -4, 0), fontsize=8,
            textcoords="offset points", va="center", ha="left" if right else "right",
            bbox={"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none"},
        )  # fmt: skip
    axes.axvline(1, color="black", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(
        "times as good as vLLM 0.26.0, recorded before   ( | must,  ◆ aim;  orange: below must )",
        fontsize=9,
    )
    commit = str(result["commit"])[:10]
    axes.set_title(f"Octavo at {commit}, {_where(result)}", fontsize=10)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _value(value: float) -> str:
    return f"{value:,.0f}" if math.fabs(value) >= 100 else f"{value:.3g}"


def _where(result: dict[str, Any]) -> str:
    machine = result["machine"]
    return machine.get("gpu") or f"{machine['cores']} CPU cores"
