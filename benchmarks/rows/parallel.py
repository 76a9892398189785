"""The rows at tensor-parallel size 2: which are run, and vLLM's recorded figures and bounds there.

vLLM's were recorded on two H100s of one host (NV18 link, multicast off), two runs: the better one.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.rows.specification import ROWS, Row

# Row -> vLLM's figure, what Octavo must reach, what it aims at. s1_50's bounds are Octavo's own at
# size 1, where the file has that: `results.scaled`.
_FIGURES: dict[str, tuple[float | None, float | None, float | None]] = {
    "s1_50": (223, None, None),
    "s1_500": (393, None, None),
    "s1_1": (127, None, None),
    "qwen_b1": (None, None, None),
    "qwen_b32": (None, None, None),
    "qwen_s2": (None, None, None),
    "llama_b1": (4.22, 4.1, 3.6),
    "llama_b32": (5.15, 5.0, 4.4),
    "llama_ttft": (13.5, None, None),
    "llama_s2": (14630, 14700, 15800),
    "llama_prefill": (69600, None, None),
    "kv_llama": (1025824, None, None),
}

_OWN = (
    Row("llama70b_b1", "llama-70b's shape, batch 1", "ms/token", "lower", "llama70b_single", tp=2),
    Row("llama70b_b32", "llama-70b's shape, batch 32", "ms/token", "lower", "llama70b_batch", tp=2),
    Row("allreduce_8k", "all-reduce of 8 KiB in a graph, what the engine uses", "us", "lower",
        "allreduce", 3.99, 5.5, 4, tp=2),
    Row("allreduce_256k", "all-reduce of 256 KiB in a graph, what the engine uses", "us", "lower",
        "allreduce", 4.82, 6.5, 4.8, tp=2),
)  # fmt: skip

RELATIVE = {"s1_50": (0.85, 1.0)}
"""Bounds as parts of Octavo's own value on one GPU of the same host."""


def rows_at(tp: int) -> dict[str, Row]:
    """The table's rows for one GPU; for two, those that were agreed on."""
    if tp == 1:
        return ROWS
    found = {
        name: replace(ROWS[name], vllm=vllm, must=must, aim=aim, tp=tp)
        for name, (vllm, must, aim) in _FIGURES.items()
    }
    return found | {row.id: replace(row, tp=tp) for row in _OWN}
