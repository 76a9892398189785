"""The roofline of decode attention: bytes per second over bytes read, one panel per group size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PEAK_TB_PER_SECOND = 3.0
"""What a copy within the memory of an H100 SXM reaches."""


def plot(rows: list[dict[str, Any]], device: str, path: Path) -> None:
    """rows as `paged_decode` writes them; those of its other sections are left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row["section"] == "roofline"]
    groups = sorted({row["group"] for row in rows})
    contexts = sorted({row["context"] for row in rows})
    colours = plt.get_cmap("viridis")
    figure, panels = plt.subplots(
        1, max(1, len(groups)), figsize=(5 * max(1, len(groups)), 4.5), sharey=True, squeeze=False
    )
    for axes, group in zip(panels[0], groups, strict=False):
        mine = [row for row in rows if row["group"] == group]
        for index, context in enumerate(contexts):
            points = sorted(
                (row["bytes"] / 1e6, row["tb_per_second"], row["batch"])
                for row in mine
                if row["context"] == context
            )
            colour = colours(index / max(1, len(contexts)))
            axes.plot(
                [x for x, _, _ in points], [y for _, y, _ in points],
                marker="o", color=colour, label=f"context {context:,}",
            )  # fmt: skip
            for x, y, batch in points:
                axes.annotate(
                    str(batch), (x, y), xytext=(0, 4), textcoords="offset points",
                    ha="center", fontsize=7, color=colour,
                )  # fmt: skip
        axes.axhline(PEAK_TB_PER_SECOND, color="black", linewidth=1)
        axes.axhline(0.85 * PEAK_TB_PER_SECOND, color="black", linewidth=1, linestyle=":")
        heads, size = mine[0]["kv_heads"], mine[0]["head_size"]
        axes.set(
            xscale="log", ylim=(0, 1.1 * PEAK_TB_PER_SECOND),
            xlabel="keys and values read, MB",
            title=f"{group * heads}/{heads} heads of {size}: groups of {group}",
        )  # fmt: skip
        axes.grid(alpha=0.25)
    panels[0][0].set_ylabel("TB/s; lines: copy, and 85% of it")
    panels[0][-1].legend(fontsize=8, loc="lower right")
    figure.suptitle(f"Paged decode attention, bf16, {device}; numbers are rows of the batch")
    figure.tight_layout()
    figure.savefig(path, dpi=150, bbox_inches="tight")
