"""What each id of a tokenizer contributes to the text, as bytes.

Two kinds of tokenizers cover nearly all language models: byte-level BPE (GPT-2, Llama 3, Qwen) and
SentencePiece-like BPE with byte fallback (Llama 2, Mistral). In both, a text is the concatenation
of its tokens' bytes, so a table from id to piece replaces calls into the tokenizer: a token costs a
dictionary look-up. Anything else (WordPiece, slow tokenizers) is decoded by the tokenizer itself,
see `detokenize.WindowDetokenizer`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPACE_MARK = "\u2581"  # SentencePiece writes a space as this character
_REPLACE_MARK = {"type": "Replace", "pattern": {"String": _SPACE_MARK}, "content": " "}
# Most models have fewer; a piece takes some 100 bytes.
_KEPT_IDS = 1 << 18
_cache: WeakKeyDictionary[Any, Pieces] = WeakKeyDictionary()


class Pieces:
    """The pieces of one tokenizer; made once per tokenizer by `pieces_of`.

    `kind` "bytes" or "marks" (SentencePiece-like) means that concatenating `piece_bytes` gives the
    text; "opaque" means that it does not and the tokenizer must decode. `vocab_size` counts added
    tokens; ids from there on are legal and have no text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self.vocab_size = len(tokenizer)
        self.kind = "opaque"
        # Whether one space at the very start of a whole text is an artefact of tokenising.
        self.strips_first_space = False
        if self.backend is not None:
            self.special: frozenset[int] = frozenset(
                token_id
                for token_id, token in self.backend.get_added_tokens_decoder().items()
                if token.special
            )
            self._look_at_decoder()
        else:
            self.special = frozenset(tokenizer.all_special_ids)
        self.visible = PieceTable(self, skip_special=True)
        self.all = PieceTable(self, skip_special=False)

    def piece_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, special or not; empty for an id past the vocabulary."""
        if not 0 <= token_id < self.vocab_size:
            return b""
        if self.kind == "opaque":
            text = self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
            return str(text).encode()
        piece: str | None = self.backend.id_to_token(token_id)
        if piece is None:
            return b""
        if self.kind == "bytes":
            try:
                return bytes(_BYTE_OF_CHARACTER[character] for character in piece)
            except KeyError:  # an added token, spelled in plain text
                return piece.encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(_SPACE_MARK, " ").encode()

    def text(self, token_id: int) -> str:
        """One token by itself, for people: bytes that are no UTF-8 become U+FFFD."""
        piece = self.all[token_id]
        return piece if isinstance(piece, str) else piece.decode("utf-8", "replace")

    def _look_at_decoder(self) -> None:
        if self.backend.decoder is None:
            return
        decoder = json.loads(self.backend.decoder.__getstate__())
        parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        types = [part["type"] for part in parts]
        if types[-1] == "ByteLevel":
            self.kind = "bytes"
        elif types == ["Metaspace"] and parts[0].get("replacement") == _SPACE_MARK:
            self.kind = "marks"
            self.strips_first_space = parts[0].get("prepend_scheme", "always") != "never"
        elif (
            "ByteFallback" in types
            and set(types) <= {"Replace", "ByteFallback", "Fuse", "Strip"}
            and all(part == _REPLACE_MARK for part in parts if part["type"] == "Replace")
        ):
            self.kind = "marks"
            self.strips_first_space = "Strip" in types


class PieceTable(dict[int, str | bytes]):
    """id -> its piece: `str` where it is complete UTF-8, else `bytes`; filled on demand."""

    def __init__(self, pieces: Pieces, *, skip_special: bool) -> None:
        super().__init__()
        self._pieces = pieces
        self._skip_special = skip_special

    def __missing__(self, token_id: int) -> str | bytes:
        piece: str | bytes
        if self._skip_special and token_id in self._pieces.special:
            piece = ""
        else:
            piece = self._pieces.piece_bytes(token_id)
            try:
                piece = piece.decode()
            except UnicodeDecodeError:
                pass
        # Ids past the vocabulary are the padding of models' heads; more would grow without bound.
        if token_id < max(self._pieces.vocab_size, _KEPT_IDS):
            self[token_id] = piece
        return piece


def pieces_of(tokenizer: PreTrainedTokenizerBase) -> Pieces:
    """The tokenizer's pieces, made at the first call and kept as long as the tokenizer."""
    pieces = _cache.get(tokenizer)
    if pieces is None:
        pieces = _cache[tokenizer] = Pieces(tokenizer)
    return pieces


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes every byte as a printable character; this undoes it (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table


_BYTE_OF_CHARACTER = _byte_of_character()
