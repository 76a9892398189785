"""What a request is called: its `X-Request-Id`, or a new name, in its answer's header and id."""

from __future__ import annotations

import random
import re
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Scope

HEADER = b"x-request-id"
_WELL_FORMED = re.compile(rb"[\x21-\x7e]{1,128}")  # else it is not taken over: it goes into headers
_NAME = "octavo_request_id"  # in the scope of a request

AnyResponse = TypeVar("AnyResponse", bound=Response)


def new_id(prefix: str) -> str:
    """An id that no other request of any server has: 96 random bits without a system call."""
    return f"{prefix}-{_new_name()}"


def name_request(scope: Scope, given: str | None = None) -> str:
    """What the request is called from now on: by its header, else `given`, else anew."""
    name = _header(scope)
    if name is None and given and _WELL_FORMED.fullmatch(given.encode()):
        name = given
    name = name or _new_name()
    scope[_NAME] = name
    return name


def with_name(response: AnyResponse, scope: Scope) -> AnyResponse:
    """The response, with the request's name in its header."""
    name = scope.get(_NAME) or name_request(scope)
    response.raw_headers.append((HEADER, name.encode()))
    return response


def _header(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == HEADER:
            return str(value.decode()) if _WELL_FORMED.fullmatch(value) else None
    return None


def _new_name() -> str:
    return f"{random.getrandbits(96):024x}"
