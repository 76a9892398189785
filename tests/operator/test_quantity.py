"""Quantities as Kubernetes writes them, and as people may."""

from __future__ import annotations

from decimal import Decimal

import pytest

from octavo_operator.quantity import parse_quantity, write_quantity


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


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (4, "4"), (1.5, "1500m"), (0.0001, "1m"), (12.3456, "12346m"), (2.0, "2")],
)
def test_how_one_is_written(value: float, text: str) -> None:
    assert write_quantity(value) == text
    assert parse_quantity(text) >= Decimal(str(round(value, 3)))
