"""What stands before the endpoints that do work: the key, admission, and the count of what runs."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo_server.api.errors import Unauthorized, error_response
from octavo_server.api.keys import KeyRing
from octavo_server.api.lifecycle import Lifecycle
from octavo_server.api.request_id import with_name
from octavo_server.errors import OctavoError

_GUARDED = ("/v1/", "/tokenize", "/detokenize")
_KEY = "octavo_key"  # in the scope of a request: which key it came with


class Gate:
    """Pure ASGI middleware. A request counts as active until its last byte was handed on."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, api_keys: tuple[str, ...]) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._keys = KeyRing(api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_GUARDED):
            await self._app(scope, receive, send)
            return
        try:
            self._check_key(scope)
            if scope["method"] == "POST":
                self._lifecycle.admit()
        except OctavoError as error:
            await with_name(error_response(error), scope)(scope, receive, send)
            return
        self._lifecycle.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._lifecycle.leave()

    def _check_key(self, scope: Scope) -> None:
        if not self._keys:
            return
        key = self._keys.find(dict(scope["headers"]).get(b"authorization", b""))
        if key is None:
            raise Unauthorized("a valid API key is needed: Authorization: Bearer KEY")
        scope[_KEY] = key


def key_of(request: Request) -> int | None:
    """Which of the server's keys a request came with; None where none is asked for."""
    key: int | None = request.scope.get(_KEY)
    return key
