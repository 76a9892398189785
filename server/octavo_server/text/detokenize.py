"""Incremental detokenising: token ids in, pieces of text out.

The text of a prompt and its answer is `decode(prompt + answer)`; what is handed out here is that
text after `decode(prompt)`, one token at a time. Bytes of an incomplete UTF-8 character are held
back until it is complete or the text ends (then they become U+FFFD, as in a whole-text decode).
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from octavo_server.text.pieces import Pieces, pieces_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"
_LONGEST_INCOMPLETE_TOKENS = 3  # a UTF-8 character has at most 4 bytes, a token at least one
_PREFIX_TOKENS = 6  # context that tells a decoder that it is not at the start of a text
_WINDOW_TOKENS = 16  # longer windows are cut, so that a token's cost does not grow with the text


class Detokenizer(Protocol):
    """Turns one sequence's ids into text; `pending` is true while bytes are held back."""

    pending: bool

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty for ids past the vocabulary."""
        ...

    def push_all(self, token_ids: Sequence[int]) -> str:
        """The text that pushing one after the other would give, in a fraction of the time."""
        ...

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        ...


def detokenizer_for(
    tokenizer: PreTrainedTokenizerBase,
    prompt_token_ids: Sequence[int],
    *,
    skip_special_tokens: bool = True,
) -> Detokenizer:
    """The fastest detokeniser that is exact for this tokenizer."""
    pieces = pieces_of(tokenizer)
    if pieces.kind == "opaque":
        return WindowDetokenizer(pieces, prompt_token_ids, skip_special_tokens)
    return PieceDetokenizer(pieces, prompt_token_ids, skip_special_tokens)


class PieceDetokenizer:
    """For tokenizers whose text is the concatenation of their tokens' bytes."""

    def __init__(
        self, pieces: Pieces, prompt_token_ids: Sequence[int], skip_special_tokens: bool
    ) -> None:
        self._table = pieces.visible if skip_special_tokens else pieces.all
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.pending = False
        for token_id in prompt_token_ids[-_LONGEST_INCOMPLETE_TOKENS:]:
            self._feed(self._table[token_id])
        self._at_start = pieces.strips_first_space and not any(
            self._table[token_id] for token_id in prompt_token_ids
        )

    def push(self, token_id: int) -> str:
        piece = self._table[token_id]
        if self.pending or type(piece) is bytes:
            piece = self._feed(piece)
        if self._at_start and piece:
            self._at_start = False
            piece = piece.removeprefix(" ")  # type: ignore[arg-type]
        return piece  # type: ignore[return-value]

    def push_all(self, token_ids: Sequence[int]) -> str:
        pieces = list(map(self._table.__getitem__, token_ids))
        if self.pending or bytes in map(type, pieces):
            text = self._feed(b"".join(p.encode() if isinstance(p, str) else p for p in pieces))
        else:
            text = "".join(pieces)  # type: ignore[arg-type]
        if self._at_start and text:
            self._at_start = False
            text = text.removeprefix(" ")
        return text

    def flush(self) -> str:
        self.pending = False
        return self._decoder.decode(b"", final=True)

    def _feed(self, piece: str | bytes) -> str:
        text = self._decoder.decode(piece.encode() if isinstance(piece, str) else piece)
        self.pending = bool(self._decoder.getstate()[0])
        return text


class WindowDetokenizer:
    """For any tokenizer: decodes a short window of the last ids again with each token.

    `_emitted` counts the characters of the window's text that are out (or belong to the prompt).
    """

    def __init__(
        self, pieces: Pieces, prompt_token_ids: Sequence[int], skip_special_tokens: bool
    ) -> None:
        self._tokenizer = pieces.tokenizer
        self._vocab_size = pieces.vocab_size
        self._skip: frozenset[int] = pieces.special if skip_special_tokens else frozenset()
        self._window: list[int] = []
        for token_id in reversed(prompt_token_ids):
            if 0 <= token_id < self._vocab_size and token_id not in self._skip:
                self._window.insert(0, token_id)
                if len(self._window) == _PREFIX_TOKENS:
                    break
        self._emitted = len(self._decode(self._window).rstrip(_REPLACEMENT))
        self.pending = False

    def push(self, token_id: int) -> str:
        if token_id in self._skip or not 0 <= token_id < self._vocab_size:
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        self.pending = text.endswith(_REPLACEMENT)
        end = len(text.rstrip(_REPLACEMENT)) if self.pending else len(text)
        if self.pending and len(self._window) > 2 * _WINDOW_TOKENS:
            end, self.pending = len(text), False  # invalid bytes for ever: no character completes
        new = text[self._emitted : end]
        self._emitted = max(self._emitted, end)
        if len(self._window) > _WINDOW_TOKENS and not self.pending:
            self._window = self._window[-_PREFIX_TOKENS:]
            self._emitted = len(self._decode(self._window))
        return new

    def push_all(self, token_ids: Sequence[int]) -> str:
        return "".join(map(self.push, token_ids))

    def flush(self) -> str:
        text = self._decode(self._window)
        new, self._emitted, self.pending = text[self._emitted :], len(text), False
        return new

    def _decode(self, token_ids: list[int]) -> str:
        if not token_ids:
            return ""
        text = self._tokenizer.decode(
            token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)
