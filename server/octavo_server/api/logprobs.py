"""Log probabilities in the three formats that clients know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo_server.engine.messages import TokenLogprobs
from octavo_server.text.detokenize import PieceDetokenizer, WindowDetokenizer
from octavo_server.text.pieces import Pieces

# JSON has no infinity: what vLLM sends for a token that cannot come.
LOWEST = -9999.0


def completion_logprobs(
    pieces: Pieces,
    entries: Sequence[TokenLogprobs | None],
    token_ids: Sequence[int],
    offsets: Sequence[int],
    *,
    as_ids: bool = False,
) -> dict[str, Any]:
    """/v1/completions: four parallel lists. An entry is None for a prompt's first token.

    `as_ids` names tokens by their ids, here and below.
    """
    name_of = _id_name if as_ids else _token_name
    top: list[dict[str, float] | None] = []
    for entry in entries:
        if entry is None:
            top.append(None)
            continue
        best = {
            name_of(pieces, token_id): max(value, LOWEST)
            for token_id, value in zip(entry.top_ids, entry.top_logprobs, strict=True)
        }
        best.setdefault(name_of(pieces, entry.token_id), max(entry.logprob, LOWEST))
        top.append(best)
    return {
        "text_offset": list(offsets),
        "token_logprobs": [None if e is None else max(e.logprob, LOWEST) for e in entries],
        "tokens": [name_of(pieces, token_id) for token_id in token_ids],
        "top_logprobs": top,
    }


def chat_logprobs(
    pieces: Pieces, entries: Sequence[TokenLogprobs], *, as_ids: bool = False
) -> dict[str, Any]:
    """/v1/chat/completions: one object per token, with its exact bytes."""
    return {
        "content": [
            {
                **_chat_token(pieces, entry.token_id, entry.logprob, as_ids),
                "top_logprobs": [
                    _chat_token(pieces, token_id, value, as_ids)
                    for token_id, value in zip(entry.top_ids, entry.top_logprobs, strict=True)
                ],
            }
            for entry in entries
        ]
    }


def prompt_logprobs(
    pieces: Pieces, entries: Sequence[TokenLogprobs | None] | None
) -> list[dict[str, Any] | None] | None:
    """vLLM's `prompt_logprobs`: per token of the prompt, ids to {logprob, rank, decoded_token}."""
    if entries is None:
        return None
    result: list[dict[str, Any] | None] = []
    for entry in entries:
        if entry is None:
            result.append(None)
            continue
        row = {
            str(token_id): _ranked(pieces, token_id, value, rank)
            for rank, (token_id, value) in enumerate(
                zip(entry.top_ids, entry.top_logprobs, strict=True), 1
            )
        }
        row.setdefault(
            str(entry.token_id), _ranked(pieces, entry.token_id, entry.logprob, entry.rank)
        )
        result.append(row)
    return result


def prompt_offsets(pieces: Pieces, token_ids: Sequence[int], text: str = "") -> list[int]:
    """Where each of a prompt's tokens begins in its text, in characters.

    `text` is what the client wrote, if it wrote text: special tokens count where it spells them.
    """
    kind = WindowDetokenizer if pieces.kind == "opaque" else PieceDetokenizer
    detokenizer = kind(pieces, [], True)
    offsets: list[int] = []
    end = 0
    for token_id in token_ids:
        offsets.append(end)
        end += len(detokenizer.push(token_id))
        if text and token_id in pieces.special:
            spelled = pieces.text(token_id)
            end += len(spelled) if text.startswith(spelled, end) else 0
    return offsets


def _ranked(pieces: Pieces, token_id: int, value: float, rank: int) -> dict[str, Any]:
    text = pieces.text(token_id)
    return {"logprob": max(value, LOWEST), "rank": rank, "decoded_token": text}


def _chat_token(pieces: Pieces, token_id: int, value: float, as_ids: bool) -> dict[str, Any]:
    return {
        "token": _id_name(pieces, token_id) if as_ids else pieces.text(token_id),
        "logprob": max(value, LOWEST),
        "bytes": list(pieces.piece_bytes(token_id)),
    }


def _id_name(pieces: Pieces, token_id: int) -> str:
    return f"token_id:{token_id}"


def _token_name(pieces: Pieces, token_id: int) -> str:
    """A token's text; where it is no valid UTF-8, OpenAI's unambiguous `bytes:\\xe2\\x82`."""
    piece = pieces.all[token_id]
    if isinstance(piece, str):
        return piece
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
