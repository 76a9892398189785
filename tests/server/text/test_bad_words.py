"""The ids of words that may not be written."""

from __future__ import annotations

import pytest
from tests.server.text.tiny_tokenizers import byte_level, sentencepiece_like

from octavo_server.errors import InvalidRequest
from octavo_server.text.bad_words import MAX_IDS, bad_word_ids


@pytest.mark.parametrize("tokenizer", [byte_level(), sentencepiece_like()])
def test_each_word_with_and_without_a_space(tokenizer) -> None:
    found = bad_word_ids(tokenizer, ["Paris", " Paris", "stop it"], len(tokenizer))
    texts = sorted(tokenizer.decode(ids).strip() for ids in found)
    assert set(texts) == {"Paris", "stop it"}
    assert len(texts) == len(set(map(tuple, found))) <= 4
    for text in ("Paris", " Paris"):
        assert tokenizer.encode(text, add_special_tokens=False) in found


def test_words_that_the_model_cannot_write_need_no_ban() -> None:
    ids = byte_level().encode("Paris", add_special_tokens=False)
    assert bad_word_ids(byte_level(), ["Paris"], max(ids)) == []
    assert bad_word_ids(byte_level(), [], 400) == []


def test_too_many_too_long() -> None:
    words = [chr(0x4E00 + index) for index in range(MAX_IDS // 8 + 1)]
    with pytest.raises(InvalidRequest, match="bad_words"):
        bad_word_ids(byte_level(), words, 400)
    assert len(bad_word_ids(byte_level(), words[: MAX_IDS // 8], 400)) == MAX_IDS // 4
