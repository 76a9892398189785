"""Arrivals of requests over time, and how long each takes: made from rates, the same every time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

TOKEN_SECONDS, PROMPT_SECONDS = 0.03, 0.2

MEDIAN_TOKENS, SIGMA = 129.0, 0.99
"""Of answers, log-normal with a mean of 211: assumed, as chats are thought to be; of no trace."""


@dataclass(frozen=True, slots=True)
class Request:
    at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Trace:
    """`rate` is requests a second by the time in seconds, at most `peak`."""

    name: str
    seconds: int
    peak: float
    rate: Callable[[float], float]

    def requests(self, seed: int = 0) -> list[Request]:
        """A Poisson process, thinned from its peak."""
        source = random.Random(f"{self.name}/{seed}")
        made, at = [], 0.0
        while (at := at + source.expovariate(self.peak)) < self.seconds:
            if source.random() * self.peak < self.rate(at):
                tokens = MEDIAN_TOKENS * math.exp(source.gauss(0.0, SIGMA))
                made.append(Request(at, PROMPT_SECONDS + TOKEN_SECONDS * min(tokens, 2000.0)))
        return made


def _diurnal(at: float) -> float:
    return 12.0 - 10.0 * math.cos(2 * math.pi * at / 14400)


def _bursts(at: float) -> float:
    return 20.0 if at % 1800 < 180 else 3.0


def _flash(at: float) -> float:
    return 24.0 if 3600 <= at < 5400 else 2.0


TRACES = (
    Trace("steady", 7200, 11.0, lambda _: 11.0),
    Trace("diurnal", 14400, 22.0, _diurnal),
    Trace("burst", 7200, 20.0, _bursts),
    Trace("flash crowd", 9000, 24.0, _flash),
)
