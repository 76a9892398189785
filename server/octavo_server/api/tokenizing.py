"""/tokenize and /detokenize: what takes time by the token happens off the event loop."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from octavo_server.api.chat import encode_messages
from octavo_server.api.errors import json_response
from octavo_server.api.protocol import DetokenizeRequest, TokenizeRequest
from octavo_server.api.service import Service
from octavo_server.errors import InvalidRequest


async def tokenize(service: Service, request: Request) -> Response:
    """The ids of a text, or of messages as the chat template writes them."""
    body = await service.read(request, TokenizeRequest)
    service.check_model_name(body.model)
    body.refuse_extra()
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("give either prompt or messages", "prompt")
    if body.messages is not None:
        token_ids = await encode_messages(
            service,
            body.messages,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            add_special_tokens=bool(body.add_special_tokens),
            template_arguments=body.chat_template_kwargs,
        )
    else:
        token_ids = await service.encode(
            body.prompt or "", "prompt", add_special_tokens=body.add_special_tokens is not False
        )
    service.log_ignored(body)
    pieces = service.model.pieces
    strings = None
    if body.return_token_strs:
        strings = await service.in_pool(
            lambda: [pieces.text(token_id) for token_id in token_ids], size=len(token_ids)
        )
    return json_response(
        {
            "count": len(token_ids),
            "max_model_len": service.model.max_model_len,
            "tokens": token_ids,
            "token_strs": strings,
        }
    )


async def detokenize(service: Service, request: Request) -> Response:
    """The text of ids, special tokens included."""
    body = await service.read(request, DetokenizeRequest)
    service.check_model_name(body.model)
    service.check_ids(body.tokens, "tokens")
    service.log_ignored(body)
    return json_response({"prompt": await service.decode(body.tokens, skip_special_tokens=False)})
