"""Label selectors of queries."""

from __future__ import annotations

import pytest

from octavo_operator.metrics_api.selectors import BadSelector, read_selector

LABELS = {"a": "1", "octavo.dev/service": "tiny", "e": ""}


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("", True),
        ("a=1", True),
        ("a==1", True),
        (" a = 1 , e = ", True),
        ("a=2", False),
        ("a!=2", True),
        ("b!=2", True),
        ("b=2", False),
        ("octavo.dev/service=tiny", True),
        ("a in (1,2)", True),
        ("a in (2, 3),e=", False),
        ("a notin (2,3)", True),
        ("b notin (2)", True),
        ("a", True),
        ("b", False),
        ("!b", True),
        ("!a", False),
        ("a in (1,2),octavo.dev/service,!b", True),
    ],
)
def test_they_choose(text: str, chosen: bool) -> None:
    assert read_selector(text)(LABELS) is chosen


@pytest.mark.parametrize(
    "text", ["a=1,", "=", "a>1", "a in 1", "a in (1", "a=b=c", "!", "a" * 5000]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(BadSelector):
        read_selector(text)
