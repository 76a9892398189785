"""Kubernetes quantities ("2Gi", "500m", 4) as numbers."""

from __future__ import annotations

import re
from decimal import Decimal

_FACTORS = {
    "n": Decimal("0.000000001"),
    "u": Decimal("0.000001"),
    "m": Decimal("0.001"),
    "": Decimal(1),
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", start=1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)},
}
_PATTERN = re.compile(
    r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:([eE][+-]?[0-9]{1,3})|(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei))?",
    re.ASCII,
)
"""https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity"""


def parse_quantity(value: str | int | float) -> Decimal:
    """The amount in base units (bytes, cores, pieces); ValueError if it is none."""
    match = _PATTERN.fullmatch(str(value))
    if match is None:
        raise ValueError(f"{value!r} is not an amount such as 4, 500m or 16Gi")
    return Decimal(match[1] + (match[2] or "")) * _FACTORS[match[3] or ""]


def write_quantity(value: float) -> str:
    """Whole, or in thousandths; what is more than nothing is never written as nothing."""
    thousandths = round(value * 1000)
    if value > 0:
        thousandths = max(1, thousandths)
    return f"{thousandths}m" if thousandths % 1000 else str(thousandths // 1000)
