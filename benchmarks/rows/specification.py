"""The rows of the GPU table: what each measures, vLLM's recorded figure, and Octavo's bounds.

vLLM's figures were recorded on the same GPU model (one H100 80GB HBM3, vLLM 0.26.0 with its
defaults, torch 2.11.0, 2026-11-22); nothing here measures vLLM. A row belongs to a scenario, the
unit that is run, repeated and timed; one scenario may give several rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower"]
Verdict = Literal["aim", "must", "below", "failed", ""]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, by its id and `tp`. `vllm`, `must` and `aim` are in `unit`; None where there is
    no such figure.
    """

    id: str
    title: str
    unit: str
    better: Better
    scenario: str
    vllm: float | None = None
    must: float | None = None
    aim: float | None = None
    tp: int = 1  # GPUs

    def at_least(self, value: float, bound: float) -> bool:
        """Whether `value` is as good as `bound`."""
        return value >= bound if self.better == "higher" else value <= bound

    def verdict(self, value: float | None) -> Verdict:
        """The better bound that `value` keeps. "" where the row has none."""
        if value is None:
            return "failed"
        if self.must is None or self.aim is None:
            return ""
        if self.at_least(value, self.aim):
            return "aim"
        return "must" if self.at_least(value, self.must) else "below"

    def times_vllm(self, value: float) -> float | None:
        """How many times as good as vLLM, above 1 is better; None without a figure of vLLM."""
        if self.vllm is None or not value:
            return None
        return value / self.vllm if self.better == "higher" else self.vllm / value


@dataclass(frozen=True, slots=True)
class Scenario:
    """`group` is the process that runs it, with its engine or servers, scenarios in order.

    `estimate_seconds` is for all its repeats and the warm-up on an H100, `limit_seconds` ends a
    hang.
    """

    id: str
    group: str
    estimate_seconds: float
    limit_seconds: float


# Seconds until a group's first scenario can begin: Python, torch, dummy weights, graphs.
GROUPS: dict[str, float] = {
    "offline-qwen": 25,
    "offline-llama": 30,
    "offline-llama70b": 60,
    "collectives-allreduce": 0,
    "http-gpt2": 5,
    "http-llama": 5,
    "live": 0,
}

# A cold start compiles every kernel; vLLM takes 93 to 117 s, so 150 s is a hang.
_START_LIMIT_SECONDS = 150

SCENARIOS = {
    scenario.id: scenario
    for scenario in (
        Scenario("qwen_kv", "offline-qwen", 0, 10),
        Scenario("qwen_single", "offline-qwen", 3, 30),
        Scenario("qwen_batch", "offline-qwen", 3, 30),
        Scenario("qwen_s2", "offline-qwen", 10, 60),
        Scenario("qwen_nano", "offline-qwen", 24, 90),
        Scenario("llama_kv", "offline-llama", 0, 10),
        Scenario("llama_single", "offline-llama", 5, 30),
        Scenario("llama_batch", "offline-llama", 7, 40),
        Scenario("llama_prefill", "offline-llama", 4, 30),
        Scenario("llama_prefix", "offline-llama", 12, 60),
        Scenario("llama_s2", "offline-llama", 27, 90),
        Scenario("llama70b_single", "offline-llama70b", 10, 60),
        Scenario("llama70b_batch", "offline-llama70b", 12, 60),
        Scenario("allreduce", "collectives-allreduce", 60, 150),
        Scenario("gpt2_cold", "http-gpt2", 35, _START_LIMIT_SECONDS),
        Scenario("gpt2_warm", "http-gpt2", 15, _START_LIMIT_SECONDS),
        Scenario("gpt2_one", "http-gpt2", 4, 30),
        Scenario("gpt2_burst", "http-gpt2", 4, 30),
        Scenario("gpt2_flood", "http-gpt2", 6, 40),
        Scenario("llama_cold", "http-llama", 45, _START_LIMIT_SECONDS),
        Scenario("llama_warm", "http-llama", 20, _START_LIMIT_SECONDS),
        Scenario("llama_s5", "http-llama", 75, 160),
        Scenario("llama_s5_inf", "http-llama", 40, 90),
        Scenario("flask", "live", 50, 120),
        Scenario("transformers", "live", 20, 90),
    )
}

_LOWER: Better = "lower"
_HIGHER: Better = "higher"

ROWS = {
    row.id: row
    for row in (
        Row("s1_50", "gpt2-large, 50 requests at once", "requests/s", _HIGHER,
            "gpt2_burst", 223, 500, 700),
        Row("s1_500", "gpt2-large, 500 requests at once", "requests/s", _HIGHER,
            "gpt2_flood", 393, 800, 1200),
        Row("s1_1", "gpt2-large, one request", "ms", _LOWER, "gpt2_one", 166, 80, 50),
        Row("qwen_b1", "qwen3-0.6b, batch 1", "ms/token", _LOWER, "qwen_single", 1.62, 1.0, 0.75),
        Row("qwen_b32", "qwen3-0.6b, batch 32", "ms/token", _LOWER, "qwen_batch", 2.75, 1.9, 1.5),
        Row("qwen_ttft", "qwen3-0.6b, first token of 512", "ms", _LOWER, "qwen_single", 9.9, 5, 3),
        Row("qwen_s2", "qwen3-0.6b, 256 x 512 in, 256 out", "tokens/s", _HIGHER,
            "qwen_s2", 24833, 29000, 32000),
        Row("qwen_nano", "qwen3-0.6b, nano-vllm's workload", "tokens/s", _HIGHER,
            "qwen_nano", 18798, 22000, 24000),
        Row("llama_b1", "llama-8b, batch 1", "ms/token", _LOWER, "llama_single", 6.53, 6.2, 5.7),
        Row("llama_b32", "llama-8b, batch 32", "ms/token", _LOWER, "llama_batch", 7.37, 7.2, 6.9),
        Row("llama_ttft", "llama-8b, first token of 512", "ms", _LOWER,
            "llama_single", 17.7, 17, 14.5),
        Row("llama_s2", "llama-8b, 256 x 512 in, 256 out", "tokens/s", _HIGHER,
            "llama_s2", 9162, 9250, 9700),
        Row("llama_prefill", "llama-8b, 64 prompts of 512", "tokens/s", _HIGHER,
            "llama_prefill", 43034, 42500, 44500),
        Row("llama_prefix", "llama-8b, 128 with a shared prefix, cold", "s", _LOWER,
            "llama_prefix", 1.35, 1.20, 0.85),
        Row("llama_prefix_warm", "llama-8b, 128 with a shared prefix, cached", "s", _LOWER,
            "llama_prefix", 1.44, 1.20, 0.80),
        Row("llama_s5_ttft_p99", "llama-8b, 20 requests/s, TTFT p99", "ms", _LOWER,
            "llama_s5", 107, 100, 70),
        Row("llama_s5_tpot_mean", "llama-8b, 20 requests/s, TPOT mean", "ms", _LOWER,
            "llama_s5", 10.2, 9.8, 8.7),
        Row("llama_s5_itl_p99", "llama-8b, 20 requests/s, ITL p99", "ms", _LOWER,
            "llama_s5", 34, 30, 20),
        Row("llama_s5_inf", "llama-8b, 400 requests at once", "requests/s", _HIGHER,
            "llama_s5_inf", 41.1, 42, 45),
        Row("kv_gpt2", "gpt2-large, KV cache at 0.7", "tokens", _HIGHER,
            "gpt2_warm", 311888, 311888, 311889),
        Row("kv_qwen", "qwen3-0.6b, KV cache at 0.9", "tokens", _HIGHER,
            "qwen_kv", 650464, 650464, 650465),
        Row("kv_llama", "llama-8b, KV cache at 0.9", "tokens", _HIGHER,
            "llama_kv", 449968, 449968, 449969),
        Row("ready_gpt2", "gpt2-large, start to ready, warm", "s", _LOWER, "gpt2_warm", 51, 12, 6),
        Row("ready_llama", "llama-8b, start to ready, warm", "s", _LOWER, "llama_warm", 21, 12, 6),
        Row("ready_cold_gpt2", "gpt2-large, start to ready, cold", "s", _LOWER,
            "gpt2_cold", 117, 45, 20),
        Row("ready_cold_llama", "llama-8b, start to ready, cold", "s", _LOWER,
            "llama_cold", 93, 45, 20),
        # Not in the table: the servers that people start from, timed beside Octavo.
        Row("flask_s1", "gpt2-large, Flask + generate, 10 requests", "requests/s", _HIGHER,
            "flask"),
        Row("hf_s1", "gpt2-large, generate, static batch of 50", "requests/s", _HIGHER,
            "transformers"),
    )
}  # fmt: skip


def choose(patterns: Sequence[str], rows: Mapping[str, Row] = ROWS) -> list[Row]:
    """Rows by id, or by the beginning of their ids ("llama"); all of them for an empty list.

    Raises ValueError for a pattern that names none.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        named = {pattern} if pattern in rows else {i for i in rows if i.startswith(pattern)}
        if not named:
            raise ValueError(f"no row is called or begins with {pattern!r}: {', '.join(rows)}")
        chosen |= named
    return [row for row in rows.values() if row.id in chosen or not patterns]


def scenarios_of(rows: Iterable[Row]) -> dict[str, list[Scenario]]:
    """Group -> its scenarios that these rows need, both in the order they run in."""
    needed = {row.scenario for row in rows}
    return {
        group: scenarios
        for group in GROUPS
        if (scenarios := [s for s in SCENARIOS.values() if s.group == group and s.id in needed])
    }


def estimate_seconds(groups: dict[str, list[Scenario]]) -> float:
    """How long these take on an H100, engine starts included."""
    return sum(
        GROUPS[group] + sum(scenario.estimate_seconds for scenario in scenarios)
        for group, scenarios in groups.items()
    )
