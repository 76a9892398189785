"""Incremental text equals the whole-text decode, whatever the tokens and their borders."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.text.tiny_tokenizers import byte_level, sentencepiece_like, word_piece

from octavo_server.text.detokenize import PieceDetokenizer, WindowDetokenizer, detokenizer_for
from octavo_server.text.pieces import pieces_of


def stream(tokenizer, prompt, ids, **options):
    detokenizer = detokenizer_for(tokenizer, prompt, **options)
    deltas = [detokenizer.push(token_id) for token_id in ids]
    return deltas, "".join(deltas) + detokenizer.flush()


@given(ids=st.lists(st.integers(0, 399), max_size=60), skip=st.booleans())
@settings(max_examples=150, deadline=None)
def test_byte_level_equals_whole_decode(ids, skip):
    tokenizer = byte_level()
    _, text = stream(tokenizer, [], ids, skip_special_tokens=skip)
    assert text == tokenizer.decode(
        ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
    )


@given(text=st.text(max_size=40), cut=st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_any_text_survives_any_cut_between_prompt_and_answer(text, cut):
    tokenizer = byte_level()
    ids = tokenizer.encode(text, add_special_tokens=False)
    cut = min(cut, len(ids))
    head = tokenizer.decode(ids[:cut], clean_up_tokenization_spaces=False).rstrip("\ufffd")
    _, answer = stream(tokenizer, ids[:cut], ids[cut:])
    if "\ufffd" not in text:
        assert head + answer == text


@given(text=st.text(max_size=40), cut=st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_sentencepiece_like_texts_survive_any_cut(text, cut):
    tokenizer = sentencepiece_like()
    ids = [1, *tokenizer.encode(text, add_special_tokens=False)]
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    cut = max(1, min(cut, len(ids)))
    # (not decode(ids[:cut]): one bad byte makes that tokenizer spoil the good ones before it)
    head = "".join(stream(tokenizer, [], ids[:cut])[0])
    _, answer = stream(tokenizer, ids[:cut], ids[cut:])
    if "\ufffd" not in whole and "\u2581" not in text:
        assert head + answer == whole


def test_incomplete_characters_are_held_back_until_complete():
    tokenizer = byte_level()
    byte = {pieces_of(tokenizer).piece_bytes(i): i for i in range(3, 259)}
    ids = [byte[bytes([value])] for value in "\U0001f600".encode()]
    deltas, text = stream(tokenizer, [], ids)
    assert deltas == ["", "", "", "\U0001f600"]
    deltas, text = stream(tokenizer, [], ids[:3])
    assert deltas == ["", "", ""]
    assert text == "\ufffd"


def test_leading_space_right_after_the_prompt():
    tokenizer = sentencepiece_like()
    paris = tokenizer.convert_tokens_to_ids("\u2581Paris")
    the = tokenizer.convert_tokens_to_ids("\u2581the")
    assert stream(tokenizer, [1], [paris, the])[1] == "Paris the"
    assert stream(tokenizer, [1, the], [paris, the])[1] == " Paris the"
    assert stream(tokenizer, [], [1, paris])[1] == "Paris"


def test_ids_past_the_vocabulary_have_no_text():
    for tokenizer in (byte_level(), sentencepiece_like(), word_piece()):
        ids = tokenizer.encode("hello", add_special_tokens=False)
        expected = stream(tokenizer, [], ids)[1]
        mixed = [100_000, *(token for token_id in ids for token in (token_id, 99_999))]
        assert stream(tokenizer, [123_456], mixed)[1] == expected


@given(ids=st.lists(st.integers(0, 10), max_size=80))
@settings(max_examples=60, deadline=None)
def test_opaque_tokenizers_go_through_the_window(ids):
    tokenizer = word_piece()
    assert isinstance(detokenizer_for(tokenizer, []), WindowDetokenizer)
    _, text = stream(tokenizer, [], ids, skip_special_tokens=False)
    assert text == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@given(ids=st.lists(st.integers(3, 399), max_size=100))
@settings(max_examples=60, deadline=None)
def test_both_detokenizers_agree_on_valid_text(ids):
    tokenizer = byte_level()
    whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    detokenizer = WindowDetokenizer(pieces_of(tokenizer), [], True)
    text = "".join(detokenizer.push(token_id) for token_id in ids) + detokenizer.flush()
    if "\ufffd" not in whole:
        assert text == whole
    assert isinstance(detokenizer_for(tokenizer, []), PieceDetokenizer)


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like])
def test_pieces_of_a_tokenizer_are_made_once(make):
    assert pieces_of(make()) is pieces_of(make())
