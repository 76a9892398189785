"""What a row may not draw, against a slow and obvious judge."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from octavo_server.engine.bans import Bans

VOCAB = 5
IDS = st.integers(0, VOCAB - 1)
CPU = torch.device("cpu")


def may_draw(
    allowed: list[int] | None, words: list[list[int]], outputs: list[int]
) -> tuple[set[int], set[int]]:
    """What is allowed at all, and what ends no bad word."""
    whole = set(range(VOCAB)) if allowed is None else set(allowed)
    ends = set()
    for word in words:
        begin = word[:-1]
        if not begin or outputs[-len(begin) :] == begin:
            ends.add(word[-1])
    return whole, set(range(VOCAB)) - ends


@settings(max_examples=400, deadline=None)
@given(
    allowed=st.none() | st.lists(IDS, min_size=1, max_size=VOCAB),
    words=st.lists(st.lists(IDS, min_size=1, max_size=4), max_size=6),
    before=st.lists(IDS, max_size=6),
    drawn=st.lists(IDS, max_size=6),
)
def test_bans_follow_the_newest_outputs(
    allowed: list[int] | None, words: list[list[int]], before: list[int], drawn: list[int]
) -> None:
    bans = Bans(allowed, words, before, CPU)
    outputs = list(before)
    for token_id in [*drawn, 0]:
        logits = torch.arange(VOCAB, dtype=torch.float32)
        whole, harmless = may_draw(allowed, words, outputs)
        bans.keep_allowed(logits)
        assert {i for i in range(VOCAB) if logits[i] == i} == whole
        bans.ban_words(logits)
        assert {i for i in range(VOCAB) if logits[i] == i} == whole & harmless
        assert all(logits[i] == i or torch.isneginf(logits[i]) for i in range(VOCAB))
        bans.note(torch.tensor([token_id]))
        outputs.append(token_id)


def test_what_it_keeps_stays_where_it_is() -> None:
    """Whatever is made between two steps lies in memory that the steps' graphs write over."""
    bans = Bans(None, [[1, 2, 3]], [0], CPU)
    where = bans._newest.data_ptr()
    for token_id in (4, 1, 2):
        bans.note(torch.tensor([token_id]))
    assert (bans._newest.tolist(), bans._newest.data_ptr()) == ([1, 2], where)
