"""The messages of a chat, as templates want them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from octavo_server.errors import InvalidRequest


class ChatMessage(BaseModel):
    """One turn. `content` may be a list of parts of type text."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None


def message_dicts(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as chat templates want them: `content` is one text. Raises `InvalidRequest`."""
    if not messages:
        raise InvalidRequest("messages must hold at least one message", "messages")
    result: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        # Not model_dump: it would copy whatever a client put below unknown fields.
        extra = message.model_extra or {}
        fields = {name: value for name, value in extra.items() if value is not None}
        fields["role"] = message.role
        fields["content"] = _content_text(message.content, f"messages.{index}.content")
        result.append(fields)
    return result


def _content_text(content: str | list[dict[str, Any]] | None, param: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequest(
                f"content parts must be of type text, not {part.get('type')!r}: this model reads"
                " text only",
                param,
            )
    return "\n".join(part["text"] for part in content)
