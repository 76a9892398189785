"""How long OpenMP's threads spin on a CPU before they sleep. Torch-free.

libgomp reads it once, when torch loads it, so it belongs into the environment before that.
"""

from __future__ import annotations

from collections.abc import Mapping

_SPINS = "2000"
"""Some 80 us, about what lies between two products of a small model's layer.

libgomp's own 300,000 are 12 ms, several turns of the kernel's scheduler: as soon as anything else
uses a core, each thread spins away the time that the one it waits for would need. 16 tokens of
SmolLM2-135M on two cores, median seconds: alone 0.65 with libgomp's, 0.64 with 2000, 0.94 with 1000
and 0.86 without spinning; beside one busy loop 3.3 (up to 13), 1.3, 0.9 and 0.74.
"""


def short_spins(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment of a process that computes; nothing where the user chose."""
    if "GOMP_SPINCOUNT" in environment or "OMP_WAIT_POLICY" in environment:
        return {}
    return {"GOMP_SPINCOUNT": _SPINS}
