"""The routes of the server."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo_server.api.chat import create_chat_completion
from octavo_server.api.completions import create_completion
from octavo_server.api.cors import with_cors
from octavo_server.api.errors import error_response, json_response
from octavo_server.api.gate import Gate
from octavo_server.api.load import describe_load
from octavo_server.api.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from octavo_server.api.request_id import with_name
from octavo_server.api.service import Service
from octavo_server.api.tokenizing import detokenize, tokenize
from octavo_server.cli import version
from octavo_server.errors import OctavoError

logger = logging.getLogger(__name__)

_PATH_CHARACTERS = 200  # of an unknown path in its answer
Handler = Callable[[Service, Request], Awaitable[Response]]


def create_app(service: Service) -> ASGIApp:
    """The ASGI application of one server. Handlers read bodies themselves: FastAPI's own way of
    validating them costs more than all the rest of a short request.
    """
    hot: dict[str, Handler] = {
        "/v1/completions": create_completion,
        "/v1/chat/completions": create_chat_completion,
    }
    app = HotPath(create_routes(service), service, hot)
    gate = Gate(app, lifecycle=service.lifecycle, api_keys=service.settings.api_keys)
    cors = service.settings.cors
    return gate if cors is None else with_cors(gate, cors)


def create_routes(service: Service) -> FastAPI:
    """All endpoints, as documented by /openapi.json."""
    # /docs and /redoc would load scripts from a CDN.
    app = FastAPI(title="Octavo", version=version(), docs_url=None, redoc_url=None)
    app.router.route_class = PlainRoute
    app.add_exception_handler(HTTPException, _on_http_error)
    _add_inference(app, service)
    _add_tokenizer(app, service)
    _add_operations(app, service)
    return app


class PlainRoute(APIRoute):
    """A route whose handler takes the request and returns a response: nothing to inject or convert.

    FastAPI's own handler spends 50 us on that for each request. What a handler raises becomes a
    response here: an error that reached uvicorn would also reset a connection that lives on.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Awaitable[Response]] = self.endpoint

        async def handle(request: Request) -> Response:
            return await _answer(request, endpoint(request))

        return handle


class HotPath:
    """Answers POSTs to some paths by itself: the routes' stack of middleware and wrappers costs
    more than a short request, and every chunk of a stream would pass through each of its layers.
    """

    def __init__(self, app: ASGIApp, service: Service, handlers: Mapping[str, Handler]) -> None:
        self._app = app
        self._service = service
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = None
        if scope["type"] == "http" and scope["method"] == "POST":
            handler = self._handlers.get(scope["path"])
        if handler is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        response = await _answer(request, handler(self._service, request))
        await response(scope, receive, send)


async def _answer(request: Request, answer: Awaitable[Response]) -> Response:
    """What a handler returns, or the response to what it raises; with the request's name."""
    try:
        response = await answer
    except (OctavoError, ValidationError) as error:
        response = error_response(error)
    except Exception as error:
        logger.exception("%s %s failed", request.method, request.url.path)
        response = error_response(error)
    return with_name(response, request.scope)


def _add_inference(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions", openapi_extra=_body_schema(CompletionRequest))
    async def completions(request: Request) -> Response:
        return await create_completion(service, request)

    @app.post("/v1/chat/completions", openapi_extra=_body_schema(ChatCompletionRequest))
    async def chat_completions(request: Request) -> Response:
        return await create_chat_completion(service, request)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        names = service.settings.served_model_names
        return json_response({"object": "list", "data": [_model_card(service, n) for n in names]})

    @app.get("/v1/models/{name:path}")
    async def model(request: Request) -> Response:
        name = service.check_model_name(request.path_params["name"])
        return json_response(_model_card(service, name))


def _add_tokenizer(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize", openapi_extra=_body_schema(TokenizeRequest))
    async def tokenize_(request: Request) -> Response:
        return await tokenize(service, request)

    @app.post("/detokenize", openapi_extra=_body_schema(DetokenizeRequest))
    async def detokenize_(request: Request) -> Response:
        return await detokenize(service, request)


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health(request: Request) -> Response:
        problem = service.lifecycle.health(time.monotonic())
        if problem is None:
            return json_response({"status": "ok"})
        return json_response({"status": "unhealthy", "message": problem}, 503)

    @app.get("/ready")
    async def ready(request: Request) -> Response:
        state = service.lifecycle.state
        return json_response({"status": state}, 200 if state == "ready" else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        encoder, content_type = choose_encoder(request.headers.get("accept", ""))
        text = encoder(service.metrics.registry)
        return Response(text, headers={"Content-Type": content_type})

    @app.get("/load")
    async def load(request: Request) -> Response:
        return json_response(describe_load(service))

    @app.get("/version")
    async def get_version(request: Request) -> Response:
        return json_response({"version": version()})


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        path = request.url.path[:_PATH_CHARACTERS]
        what = {404: f"there is no path {path} here", 405: f"{path} takes no {request.method}"}
        error = HTTPException(error.status_code, what[error.status_code], error.headers)
    return with_name(error_response(error), request.scope)


def _model_card(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "octavo",
        "root": service.settings.served_model_names[0],
        "parent": None,
        "max_model_len": service.model.max_model_len,
        "permission": [],
    }


def _body_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """What the OpenAPI page says of a body that the handler reads itself."""
    schema = kind.model_json_schema()
    for name, definition in schema.pop("$defs", {}).items():
        schema = _inline(schema, f"#/$defs/{name}", definition)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inline(schema: Any, reference: str, definition: Any) -> Any:
    if isinstance(schema, dict):
        if schema.get("$ref") == reference:
            return definition
        return {key: _inline(value, reference, definition) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_inline(item, reference, definition) for item in schema]
    return schema
