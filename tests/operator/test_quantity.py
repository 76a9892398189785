"""Quantities as Kubernetes writes them, and as people may."""

from __future__ import annotations

from decimal import Decimal

import pytest

from octavo_operator.quantity import parse_quantity


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("128974848", "128974848"), ("129e6", "129000000"), ("129M", "129000000"),
        ("128974848000m", "128974848"), ("123Mi", "128974848"), ("1E", "1" + "0" * 18),
        ("1E3", "1000"), ("1e-3", "0.001"), (".5", "0.5"), ("5.", "5"), ("+1", "1"), ("-1", "-1"),
        ("100u", "0.0001"), ("1.5Gi", "1610612736"), ("0", "0"), (2, "2"), (0.5, "0.5"),
    ],
)  # fmt: skip
def test_what_is_one(text: str, amount: str) -> None:
    assert parse_quantity(text) == Decimal(amount)


@pytest.mark.parametrize("text", ["", ".", "1K", "1ki", "1 Gi", "1e", "1eMi", "1e3Mi", "٣", "1\n"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not an amount"):
        parse_quantity(text)
