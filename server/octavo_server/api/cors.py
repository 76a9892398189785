"""Which web pages may use the server from a browser; none, unless flags say so."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo_server.errors import InvalidSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#]+")
_EXPOSED = ("X-Request-Id", "Retry-After")


@dataclass(frozen=True, slots=True)
class Cors:
    """`("*",)` is all."""

    origins: tuple[str, ...]
    methods: tuple[str, ...] = ("*",)
    headers: tuple[str, ...] = ("*",)
    credentials: bool = False


def cors_of(
    origins: Sequence[str], methods: Sequence[str], headers: Sequence[str], *, credentials: bool
) -> Cors | None:
    """The flags together, each a list in JSON, as vLLM's, or a word; None: no page may.

    Raises `InvalidSettings`.
    """
    cors = Cors(
        _words("--allowed-origins", origins),
        _words("--allowed-methods", methods) or ("*",),
        _words("--allowed-headers", headers) or ("*",),
        credentials,
    )
    if not cors.origins:
        if methods or headers or credentials:
            raise InvalidSettings("CORS needs --allowed-origins")
        return None
    for origin in cors.origins:
        if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
            raise InvalidSettings(
                f"--allowed-origins: {origin!r} is not an origin such as https://example.com,"
                " without a path"
            )
    if credentials and "*" in cors.origins:
        raise InvalidSettings("--allow-credentials needs origins by name: any page could use them")
    return cors


def with_cors(app: ASGIApp, cors: Cors) -> ASGIApp:
    """Answers browsers' preflights, which carry no key, and names the origins in all answers."""
    # Imported here: flags are read before the socket is open, and this takes as long as they do.
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(
        app,
        allow_origins=cors.origins,
        allow_methods=cors.methods,
        allow_headers=cors.headers,
        allow_credentials=cors.credentials,
        expose_headers=_EXPOSED,
    )


def _words(flag: str, given: Sequence[str]) -> tuple[str, ...]:
    words: list[str] = []
    for value in given:
        found: object = [value]
        if value.lstrip().startswith("["):
            try:
                found = json.loads(value)
            except ValueError:
                found = None
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise InvalidSettings(f"{flag}: {value!r} is not a list of texts in JSON")
        words += found
    return tuple(word.strip() for word in words if word.strip())
