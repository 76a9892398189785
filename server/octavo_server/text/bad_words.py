"""Words that an answer may not hold, as the sequences of ids that spell them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from octavo_server.errors import InvalidRequest
from octavo_server.text.prompt import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_IDS = 8192  # sequences times the longest: what the device keeps for a row, 8 bytes each


def bad_word_ids(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], vocab_size: int
) -> list[list[int]]:
    """The ids of each word at the start of a text and after a space. Raises `InvalidRequest`.

    Other spellings of the same letters are not found. Words with ids that the model cannot draw
    need no ban.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        for text in (word.lstrip(), " " + word.lstrip()):
            ids = encode(tokenizer, text, False)
            if ids and max(ids) < vocab_size:
                found[tuple(ids)] = None
    longest = max(map(len, found), default=0)
    if len(found) * longest > MAX_IDS:
        raise InvalidRequest(
            f"bad_words: {len(words)} words of up to {longest} tokens are too many; their number,"
            f" with and without a space before them, times the longest may be {MAX_IDS}",
            "bad_words",
        )
    return [list(ids) for ids in found]
