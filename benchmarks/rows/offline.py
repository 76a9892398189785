"""The rows of an engine without HTTP: `octavo_server.LLM`, started once for all rows of a model.

    python -m benchmarks.rows.offline --model qwen --folder DIR --scenarios qwen_single,qwen_s2

Batches and single requests are driven step by step, for the times of their tokens; throughput
goes through `LLM.generate`, text included (`--engine-only`: without it).
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows.drive import drive
from benchmarks.rows.reporting import note, sample, scenario
from benchmarks.rows.workloads import FULL, MODELS, TINY, model, nano_lengths, random_prompts

_WARM_UP_TOKENS = 16
"""Answers of a warm-up run: every kernel and every bucket of rows ran once, the rest is waiting."""

_LEAST_SINGLE_REPEATS = 5
"""Single requests take under a second each, and their first tokens scatter most."""

_NANO_TEMPERATURE = 0.6


class Bench:
    """One engine and its scenarios. Every repeat has prompts of its own: no cache knows them."""

    def __init__(self, llm: Any, key: str, args: argparse.Namespace) -> None:
        self._llm = llm
        self._key = key
        self._repeats: int = args.repeats
        self._engine_only: bool = args.engine_only
        self._sizes = TINY if args.tiny else FULL
        self._vocab_size = llm.core.ready.vocab_size
        self._seeds = itertools.count(1)

    def scenarios(self) -> dict[str, Callable[[], None]]:
        found = {
            "kv": self.cache, "single": self.single, "batch": self.batch, "s2": self.s2,
            "nano": self.nano, "prefill": self.prefill, "prefix": self.prefix,
        }  # fmt: skip
        return {f"{self._key}_{name}": run for name, run in found.items()}

    def cache(self) -> None:
        ready = self._llm.core.ready
        # As vLLM counts it: with block 0, which never holds a token.
        sample(f"kv_{self._key}", ready.num_blocks * ready.block_size)

    def single(self) -> None:
        sizes = self._sizes
        for repeat in range(1 + max(self._repeats, _LEAST_SINGLE_REPEATS)):
            done = drive(self._llm.core, self._prompts([sizes.single_in]), [sizes.single_out])
            if repeat:
                sample(f"{self._key}_b1", done.token_seconds(sizes.single_out) * 1e3)
                sample(f"{self._key}_ttft", done.first_token_seconds * 1e3)

    def batch(self) -> None:
        sizes = self._sizes
        for repeat in range(1 + self._repeats):
            tokens = sizes.single_out if repeat else min(sizes.single_out, _WARM_UP_TOKENS)
            prompts = self._prompts([sizes.single_in] * sizes.batch)
            done = drive(self._llm.core, prompts, [tokens] * sizes.batch)
            if repeat:
                sample(f"{self._key}_b32", done.token_seconds(tokens) * 1e3)
                # The table has no row for it; vLLM: 397 ms (llama-8b), 74.9 ms (qwen3-0.6b).
                note(f"{self._key}_b32", ttft_of_all_ms=done.first_token_seconds * 1e3)

    def s2(self) -> None:
        sizes = self._sizes
        count, tokens = sizes.s2_requests, sizes.s2_out
        for repeat in range(1 + self._repeats):
            prompts = self._prompts([sizes.s2_in] * count)
            outputs = [tokens if repeat else min(tokens, _WARM_UP_TOKENS)] * count
            seconds = self._generate(prompts, outputs)
            if repeat:
                sample(f"{self._key}_s2", count * tokens / seconds)

    def nano(self) -> None:
        lengths, outputs = nano_lengths(self._sizes)
        for repeat in range(1 + self._repeats):
            asked = outputs if repeat else [min(o, _WARM_UP_TOKENS) for o in outputs]
            seconds = self._generate(self._prompts(lengths), asked, _NANO_TEMPERATURE)
            if repeat:
                sample(f"{self._key}_nano", sum(outputs) / seconds)

    def prefill(self) -> None:
        count, length = self._sizes.prefill_requests, self._sizes.single_in
        for repeat in range(1 + self._repeats):
            seconds = self._generate(self._prompts([length] * count), [1] * count)
            if repeat:
                sample(f"{self._key}_prefill", count * length / seconds)

    def prefix(self) -> None:
        """Each repeat: a new prefix with 128 endings, then the same prefix with 128 others."""
        sizes = self._sizes
        count = sizes.prefix_requests
        for repeat in range(1 + self._repeats):
            shared = self._prompts([sizes.prefix_shared])[0]
            outputs = [sizes.prefix_out] * count
            for row in ("prefix", "prefix_warm"):
                prompts = self._prompts([sizes.prefix_own] * count, shared)
                seconds = self._generate(prompts, outputs)
                if repeat:
                    sample(f"{self._key}_{row}", seconds)

    def _prompts(self, lengths: Sequence[int], shared: Sequence[int] = ()) -> list[list[int]]:
        return random_prompts(self._vocab_size, lengths, next(self._seeds), shared)

    def _generate(
        self, prompts: list[list[int]], outputs: list[int], temperature: float = 0.0
    ) -> float:
        """Seconds until all are answered, all given at once. Raises if an answer is cut short."""
        from octavo_server import SamplingParams

        gc.collect()
        if self._engine_only or not (len(set(outputs)) == 1 or self._takes_lists()):
            return drive(self._llm.core, prompts, outputs, temperature).seconds
        params = [
            SamplingParams(temperature=temperature, max_tokens=count, ignore_eos=True)
            for count in outputs
        ]
        began = time.perf_counter()
        answers = self._llm.generate(prompts, params if self._takes_lists() else params[0])
        seconds = time.perf_counter() - began
        made = [len(answer.outputs[0].token_ids) for answer in answers]
        if made != outputs:
            raise RuntimeError(f"asked for {sum(outputs)} tokens, got {sum(made)}")
        return seconds

    def lives(self) -> bool:
        """Whether the engine still answers."""
        try:
            drive(self._llm.core, [[1, 2, 3]], [2])
        except Exception:
            return False
        return True

    def _takes_lists(self) -> bool:
        """Whether `generate` takes parameters for each prompt."""
        return "Sequence[SamplingParams]" in str(self._llm.generate.__annotations__)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=list(MODELS), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--scenarios", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--engine-only", action="store_true")
    args = parser.parse_args()

    from octavo_server import LLM

    began = time.perf_counter()
    llm = LLM(str(args.folder), **model(args.model, tiny=args.tiny, tp=args.tp).settings())
    print(f"engine after {time.perf_counter() - began:.1f} s: {llm.core.ready}", flush=True)
    # As the engine's own process does; without it each full collection walks what start-up made.
    gc.collect()
    gc.freeze()
    bench = Bench(llm, args.model, args)
    runs = bench.scenarios()
    for name in args.scenarios.split(","):
        with scenario(name) as outcome:
            runs[name]()
        # After a device error every launch fails: a new process has to take the rest.
        if outcome.failed and not bench.lives():
            sys.exit("the engine does not live any more")
    llm.close()


if __name__ == "__main__":
    main()
