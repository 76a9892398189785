"""How long a container that ended waits for its restart: a kubelet's rule, pure."""

from __future__ import annotations

from dataclasses import dataclass

MAX_FACTOR = 30  # 300 s for the base of 10 s
RESET_FACTOR = 60  # 10 min for the base of 10 s


@dataclass(slots=True)
class Backoff:
    """The first restart is immediate, then base, 2 base, ... up to 30 base.

    A run of more than 60 base starts anew. `base_seconds` is 10 on a kubelet, shorter in tests.
    """

    base_seconds: float = 10.0
    failures: int = 0

    def next_delay_seconds(self, ran_seconds: float) -> float:
        """For a container that ended after it ran this long; counted from its end."""
        if ran_seconds > RESET_FACTOR * self.base_seconds:
            self.failures = 0
        self.failures += 1
        return delay_seconds(self.failures, self.base_seconds)


def delay_seconds(failures: int, base_seconds: float = 10.0) -> float:
    """After the `failures`-th end in a row: 0, base, 2 base, 4 base, ... 30 base."""
    if failures <= 1:
        return 0.0
    return float(base_seconds * min(2 ** min(failures - 2, 16), MAX_FACTOR))
