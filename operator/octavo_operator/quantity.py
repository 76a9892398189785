"""Kubernetes quantities ("2Gi", "500m", 4) as numbers."""

from __future__ import annotations

import re
from decimal import Decimal

_FACTORS = {
    "m": Decimal("0.001"),
    "": Decimal(1),
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTP", start=1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTP", start=1)},
}
_PATTERN = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")


def parse_quantity(value: str | int | float) -> Decimal:
    """The amount in base units (bytes, cores, pieces); ValueError if it is none."""
    match = _PATTERN.fullmatch(str(value))
    if match is None:
        raise ValueError(f"{value!r} is not an amount such as 4, 500m or 16Gi")
    return Decimal(match[1]) * _FACTORS[match[2] or ""]
