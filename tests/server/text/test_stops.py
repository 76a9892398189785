"""Stop strings: found across token borders, never leaked, never eating more than they match."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_server.text.stops import StopMatcher


def feed(pieces, stops, **options):
    matcher = StopMatcher(stops, **options)
    out = []
    for piece in pieces:
        text, match = matcher.push(piece)
        out.append(text)
        if match is not None:
            return out, match
    out.append(matcher.flush())
    return out, None


def test_a_stop_across_tokens_is_held_back_and_cut():
    assert feed(["Hello S", "TO", "P and more"], ["STOP"]) == (["Hello ", "", ""], "STOP")
    assert feed(["Hello S", "TO", "P"], ["STOP"], include_in_output=True) == (
        ["Hello ", "", "STOP"],
        "STOP",
    )


def test_a_false_alarm_is_released():
    assert feed(["Hello S", "TE", "P"], ["STOP"]) == (["Hello ", "STE", "P", ""], None)
    assert feed(["aab", "aa"], ["aac"]) == (["aab", "", "aa"], None)


def test_the_match_that_completes_first_wins():
    assert feed(["abcd"], ["bcd", "c"]) == (["ab"], "c")
    assert feed(["abcd"], ["cd", "bcd"]) == (["a"], "bcd")


TEXT = st.text(alphabet="ab\n", max_size=30)


@given(
    text=TEXT,
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=4),
    cuts=st.lists(st.integers(0, 30), max_size=8),
    include=st.booleans(),
)
@settings(max_examples=250, deadline=None)
def test_independent_of_token_borders(text, stops, cuts, include):
    borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[a:b] for a, b in itertools.pairwise(borders)]
    out, match = feed(pieces, stops, include_in_output=include)
    ends = [(text.find(s) + len(s), text.find(s), s) for s in stops if s in text]
    if not ends:
        assert ("".join(out), match) == (text, None)
    else:
        end, start, stop = min(ends)
        assert ("".join(out), match) == (text[: end if include else start], stop)
