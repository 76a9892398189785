"""Drives an engine in this process without text: requests in, steps until all are done, times out.

The only file here that knows the engine's messages.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octavo_server.engine.messages import Add
from octavo_server.sampling_params import SamplingParams

_ids = itertools.count()


@dataclass(frozen=True, slots=True)
class Driven:
    """Monotonic seconds: when the requests were given, and when each knew its tokens."""

    began: float
    ended: float
    first: list[float]  # a request: its first token was known
    last: list[float]

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def first_token_seconds(self) -> float:
        """Until the last of them had its first token."""
        return max(self.first) - self.began

    def token_seconds(self, tokens: int) -> float:
        """A token, from where all have their first one: prefill is not in it."""
        return (max(self.last) - max(self.first)) / (tokens - 1)


def add_all(
    core: Any, prompts: Sequence[list[int]], outputs: Sequence[int], temperature: float = 0.0
) -> list[str]:
    """Give the engine one request per prompt, `outputs[i]` tokens long, EOS ignored."""
    names = []
    now = time.monotonic()
    for prompt, count in zip(prompts, outputs, strict=True):
        names.append(f"bench-{next(_ids)}")
        params = SamplingParams(temperature=temperature, max_tokens=count, ignore_eos=True, seed=0)
        core.add(Add(names[-1], prompt, params, now))
    return names


def drive(
    core: Any, prompts: Sequence[list[int]], outputs: Sequence[int], temperature: float = 0.0
) -> Driven:
    """Run them all to their ends. Raises RuntimeError if a request fails or is cut short."""
    began = time.monotonic()
    names = add_all(core, prompts, outputs, temperature)
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    made = dict.fromkeys(names, 0)
    live = set(names)
    try:
        while live:
            report = core.step()
            if report is None:
                continue
            for output in report.outputs:
                name = output.request_id
                if name not in live:
                    continue
                if output.error:
                    raise RuntimeError(f"a request failed: {output.error}")
                if output.token_ids:
                    made[name] += len(output.token_ids)
                    first.setdefault(name, report.now)
                    last[name] = report.now
                if output.finish_reason is not None:
                    live.discard(name)
    finally:
        core.abort(list(live))  # after a failure: the next run must not meet them
    ended = time.monotonic()
    short = [name for name, count in zip(names, outputs, strict=True) if made[name] != count]
    if short:
        raise RuntimeError(f"{len(short)} requests made fewer or more tokens than asked for")
    return Driven(began, ended, [first[n] for n in names], [last[n] for n in names])
