"""The prompts of a completion request, and how long they may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo_server.api.limits import MAX_SEQUENCES, check_multiplied
from octavo_server.errors import InvalidRequest


def parse_prompts(
    prompt: object, n: int, max_model_len: int, keep: int | None = None
) -> list[str | list[int]]:
    """The prompts of a completion request, at least one; of ids the last `keep`, if given.

    Raises `InvalidRequest`. Lists that are too long are refused on sight: looking at each entry
    takes its time.
    """
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        items: list[Any] = prompt
        several = not isinstance(items[0], int)
        if several and len(items) * n > MAX_SEQUENCES:
            raise InvalidRequest(
                f"a request may ask for {MAX_SEQUENCES} answers, not {len(items)} prompts times"
                f" {n}",
                "prompt",
            )
        if keep is not None and several:
            items = [ids[-keep:] if isinstance(ids, list) else ids for ids in items]
        elif keep is not None:
            items = items[-keep:]
        given = 0
        for ids in items if several else [items]:
            if isinstance(ids, list):
                if len(ids) >= max_model_len:
                    raise too_long(len(ids), max_model_len, "prompt")
                given += len(ids)
        check_multiplied(given, n, max_model_len)
        if _is_ids(items):
            return [items]
        if all(isinstance(item, str) for item in items):
            return items
        if all(isinstance(item, list) and _is_ids(item) for item in items):
            return items
    raise InvalidRequest(
        "prompt must be a text, a list of texts, a list of token ids or a list of such lists,"
        " none of them empty",
        "prompt",
    )


def tokens_to_keep(asked: int | None, max_tokens: int | None, max_model_len: int) -> int | None:
    """Of a prompt's end, by truncate_prompt_tokens; -1: what leaves room for the answer.

    None: all. Raises `InvalidRequest`.
    """
    if asked is None:
        return None
    most = max_model_len - 1
    if asked == -1:
        return max(1, max_model_len - (max_tokens or 1))
    if not 1 <= asked <= most:
        raise InvalidRequest(
            f"truncate_prompt_tokens must be -1 or between 1 and {most}, not {asked}",
            "truncate_prompt_tokens",
        )
    return asked


def truncated(token_ids: list[int], keep: int, prefix: Sequence[int]) -> list[int]:
    """The last `keep` ids; a `prefix` that a tokenizer puts before every text stays."""
    if len(token_ids) <= keep:
        return token_ids
    kept = list(prefix) if token_ids[: len(prefix)] == list(prefix) else []
    if len(kept) >= keep:
        return token_ids[-keep:]
    return kept + token_ids[len(token_ids) - keep + len(kept) :]


def too_long(tokens: int, max_model_len: int, param: str) -> InvalidRequest:
    """OpenAI's answer to a prompt that leaves no room for one more token."""
    return InvalidRequest(
        f"this model's maximum context length is {max_model_len} tokens; the prompt has {tokens},"
        " and at least one must be left for the answer",
        param,
        "context_length_exceeded",
    )


def _is_ids(items: list[Any]) -> bool:
    return set(map(type, items)) == {int}
