"""Lengths of a body's containers, checked before anything walks them: each walk holds the loop."""

from __future__ import annotations

from typing import Any

from octavo_server.errors import InvalidRequest
from octavo_server.sampling_params import MAX_ALLOWED

MAX_SEQUENCES = 2048  # of one request: prompts times n
MAX_LIST = 1024  # entries of stop, stop_token_ids, logit_bias, chat_template_kwargs
MAX_MESSAGES = 16_384  # validating more would hold up the event loop; so would more parts
MAX_MESSAGE_FIELDS = 64
MAX_FIELDS = 1000  # of a body: unknown ones are ignored, but each is looked at
MAX_CONTAINERS = 1_500_000  # objects, lists and keys of a large body: 0.4 s of parsing
MAX_KEYS = 500_000  # 0.15 s
MAX_VALUES = 5_000_000  # a little more than the ids of MAX_REQUEST_TOKENS
MAX_REQUEST_TOKENS = 4 * 1024 * 1024  # prompt tokens over all of a request's sequences
_LARGE_BYTES = 1024 * 1024  # a smaller body cannot hold enough to matter

_LISTS = (
    *("stop", "stop_token_ids", "logit_bias", "bad_words", "chat_template_kwargs"),
    "stream_options",
)


def check_raw(raw: bytes) -> None:
    """Refuse a large body whose parsing alone would take most of a second.

    Counts characters, those within texts too: no text that fits a model comes near the limits.
    """
    if len(raw) < _LARGE_BYTES:
        return
    if sum(map(raw.count, (b"{", b"[", b":"))) > MAX_CONTAINERS:
        raise InvalidRequest(f"a body may hold {MAX_CONTAINERS} objects, lists and keys, not more")
    # A quotation mark within a text is escaped: this finds the keys of compact JSON only.
    if raw.count(b'":') - raw.count(b'\\":') > MAX_KEYS:
        raise InvalidRequest(f"a body may hold {MAX_KEYS} keys, not more")
    if raw.count(b",") > MAX_VALUES:
        raise InvalidRequest(f"a body may hold {MAX_VALUES} values, not more")


def check_lengths(fields: dict[str, Any], max_model_len: int) -> None:
    """Raise `InvalidRequest` for a container that is too long; types are checked elsewhere."""
    if len(fields) > MAX_FIELDS:
        raise InvalidRequest(f"a body may have {MAX_FIELDS} fields, not {len(fields)}")
    for name in _LISTS:
        value = fields.get(name)
        if isinstance(value, (list, dict)):
            _check(len(value), MAX_LIST, name, "entries")
    allowed = fields.get("allowed_token_ids")
    if isinstance(allowed, list):
        _check(len(allowed), MAX_ALLOWED, "allowed_token_ids", "ids")
    tokens = fields.get("tokens")
    if isinstance(tokens, list):
        _check(len(tokens), max_model_len, "tokens", "ids")
    messages = fields.get("messages")
    if isinstance(messages, list):
        _check_messages(messages)


def check_multiplied(prompt_tokens: int, n: int, max_model_len: int) -> None:
    """Refuse what `n` would turn into gigabytes on its way through the engine.

    `prompt_tokens` counts all prompts once. n up to 8 costs little more than the body did.
    """
    total = prompt_tokens * n
    limit = min(MAX_REQUEST_TOKENS, max(128 * max_model_len, 8 * prompt_tokens))
    if total > limit:
        raise InvalidRequest(
            f"n={n} times prompts of {prompt_tokens} tokens are {total} prompt tokens; one request"
            f" may have {limit}: send several requests",
            "n" if n > 1 else "prompt",
        )


def _check_messages(messages: list[Any]) -> None:
    _check(len(messages), MAX_MESSAGES, "messages", "messages")
    parts = 0
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequest(f"messages.{index} must be an object", f"messages.{index}")
        _check(len(message), MAX_MESSAGE_FIELDS, f"messages.{index}", "fields")
        content = message.get("content")
        if not isinstance(content, list):
            continue
        parts += len(content)
        where = f"messages.{index}.content"
        _check(parts, MAX_MESSAGES, where, "parts in all messages")
        for part in content:
            if not isinstance(part, dict):
                raise InvalidRequest(f"{where}: each part must be an object", where)
            _check(len(part), MAX_MESSAGE_FIELDS, where, "fields in a part")


def _check(length: int, limit: int, name: str, what: str) -> None:
    if length > limit:
        raise InvalidRequest(f"{name} may hold {limit} {what}, not {length}", name)
