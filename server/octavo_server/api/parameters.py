"""The tables of docs/api.md, from the classes and lists that decide what a request may say.

python -m octavo_server.api.parameters
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from octavo_server.api.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    OpenBody,
    TokenizeRequest,
)
from octavo_server.api.refused import IGNORED, OFF, REFUSED

_KINDS = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "boolean",
    "object": "object",
}
Properties = Mapping[str, Mapping[str, Any]]


def render_tables() -> str:
    """All of them, in Markdown."""
    return "\n".join(
        [
            "## Parameters of completions and chats",
            "",
            *_supported(),
            "",
            "## Refused",
            "",
            *_refused(),
            "",
            "## Accepted without effect",
            "",
            *_ignored(),
            "",
            "## Parameters of /tokenize",
            "",
            *_of_one(TokenizeRequest),
            "",
            "## Parameters of /detokenize",
            "",
            *_of_one(DetokenizeRequest),
            "",
        ]
    )


def _supported() -> Iterator[str]:
    completions, chat = _properties(CompletionRequest), _properties(ChatCompletionRequest)
    yield from _head("parameter", "completions", "chat", "type", "what")
    for name in sorted(completions.keys() | chat.keys()):
        # A field that both have may mean something else in each.
        both = completions.get(name), chat.get(name)
        different = None not in both and both[0] != both[1]
        for own in both if different else [both[0] or both[1]]:
            assert own is not None
            places = ("yes" if mine is not None and mine == own else "" for mine in both)
            yield _row(f"`{name}`", *places, _kind(own), own["description"])


def _refused() -> Iterator[str]:
    yield from _head("parameter", "accepted values", "else a 400 that says it")
    for name, refusal in sorted(REFUSED.items()):
        off = refusal.neutral[-len(OFF) :] == OFF or refusal.neutral[: len(OFF)] == OFF
        named = [value for value in refusal.neutral if not off or value not in OFF]
        neutral = [f"`{json.dumps(value)}`" for value in (None, *named)]
        yield _row(f"`{name}`", ", ".join(neutral) + ", false, 0, empty" * off, refusal.why)


def _ignored() -> Iterator[str]:
    yield from _head("parameter", "why that does no harm")
    for name, why in sorted(IGNORED.items()):
        yield _row(f"`{name}`", why)


def _of_one(kind: type[OpenBody]) -> Iterator[str]:
    yield from _head("parameter", "type", "what")
    for name, own in sorted(_properties(kind).items()):
        yield _row(f"`{name}`", _kind(own), own["description"])


def _properties(kind: type[OpenBody]) -> Properties:
    properties: Properties = kind.model_json_schema()["properties"]
    return properties


def _kind(schema: Mapping[str, Any]) -> str:
    """A JSON schema's type in a word or two."""
    branches = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    kinds = []
    for branch in branches:
        if branch.get("type") == "array":
            items = _kind(branch["items"])
            kinds.append(f"list of {items}s")
        elif "$ref" in branch:
            kinds.append("object")
        else:
            kinds.append(_KINDS.get(branch.get("type", ""), "any"))
    return " or ".join(kinds)


def _head(*cells: str) -> Iterator[str]:
    yield _row(*cells)
    yield "|" + "---|" * len(cells)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(render_tables(), end="")
