"""From exceptions to OpenAI's error bodies; no traceback ever leaves the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from octavo_server.errors import EngineDead, InvalidRequest, OctavoError

RETRY_AFTER_SECONDS = 1  # to another replica: a Service sends nothing to a pod that is not ready


class UnknownModel(OctavoError):
    """The request names a model that this server does not serve: 404."""


class Unavailable(OctavoError):
    """Starting or draining: 503 with Retry-After."""


class Overloaded(OctavoError):
    """No place for this request now: 429 where its own client has too many, else 503.

    `seconds`: when to come again.
    """

    def __init__(self, message: str, *, status: int, seconds: int) -> None:
        super().__init__(message)
        self.status = status
        self.seconds = seconds


class Unauthorized(OctavoError):
    """No key, or not one of ours: 401."""


class BodyTooLarge(OctavoError):
    """The body exceeds --max-body-bytes: 413."""


class ClientGone(OctavoError):
    """The client closed the connection: nobody reads what is sent now."""


def error_body(error: BaseException) -> tuple[int, dict[str, Any]]:
    """HTTP status and `{"error": {message, type, param, code}}` of any exception."""
    param: str | None = None
    code: str | None = None
    kind = "invalid_request_error"
    message = str(error)
    match error:
        case InvalidRequest():
            status, param, code = 400, error.param, error.code
        case ValidationError():
            status = 400
            message, param = _first_problem(error)
        case UnknownModel():
            status, param, code = 404, "model", "model_not_found"
        case Unauthorized():
            status, code = 401, "invalid_api_key"
        case BodyTooLarge():
            status = 413
        case Unavailable():
            status, kind, code = 503, "service_unavailable", "service_unavailable"
        case Overloaded(status=429):
            status, kind, code = 429, "rate_limit_error", "rate_limit_exceeded"
        case Overloaded():
            status, kind, code = error.status, "service_unavailable", "overloaded"
        case EngineDead():
            status, kind, code = 500, "server_error", "engine_dead"
        case ClientGone():
            status, kind = 499, "client_closed_request"
        case HTTPException():
            status, message = error.status_code, str(error.detail)
            kind = kind if status < 500 else "server_error"
        case _:
            status, kind = 500, "server_error"
            message = "the server failed on this request; its log says why"
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: BaseException) -> Response:
    """The whole response for an error that came before the first byte of an answer."""
    status, body = error_body(error)
    headers: dict[str, str] = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(error.seconds)
    elif status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    elif status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if isinstance(error, HTTPException) and error.headers:
        headers.update(error.headers)
    return json_response(body, status, headers)


def json_response(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """orjson in, `application/json` out."""
    return Response(
        orjson.dumps(body),
        status_code=status,
        headers=dict(headers) if headers else None,
        media_type="application/json",
    )


def _first_problem(error: ValidationError) -> tuple[str, str | None]:
    """One sentence and the name of the field, from pydantic's list."""
    problem = error.errors(include_url=False, include_input=False)[0]
    path = [str(part) for part in problem["loc"] if not _is_union_branch(part)]
    where = ".".join(path) or None
    message = problem["msg"].removeprefix("Value error, ")
    return (f"{where}: {message}" if where else message), where


def _is_union_branch(part: int | str) -> bool:
    """pydantic adds which member of a union it tried, such as `list[str]`: not part of the body."""
    return isinstance(part, str) and (
        "[" in part or part in ("str", "int", "float", "bool", "dict", "list")
    )
