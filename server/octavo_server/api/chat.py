"""/v1/chat/completions."""

from __future__ import annotations

import time
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from octavo_server.api.collect import Collected, collect, usage
from octavo_server.api.conversation import ChatMessage, message_dicts
from octavo_server.api.errors import json_response
from octavo_server.api.gate import key_of
from octavo_server.api.limits import check_multiplied
from octavo_server.api.logprobs import chat_logprobs, prompt_logprobs
from octavo_server.api.prompts import tokens_to_keep
from octavo_server.api.protocol import ChatCompletionRequest
from octavo_server.api.request_id import name_request, new_id
from octavo_server.api.requests import Choice, Terms
from octavo_server.api.service import Model, Service, watch_disconnect
from octavo_server.api.streaming import EventStream, event
from octavo_server.errors import InvalidRequest
from octavo_server.sampling_params import SamplingParams
from octavo_server.text.assemble import Delta
from octavo_server.text.prompt import render_chat


async def create_chat_completion(service: Service, request: Request) -> Response:
    """Answer one request; whatever is wrong with it is raised."""
    arrival = time.monotonic()
    model = service.model
    key = key_of(request)
    service.admission.check(key, arrival)
    body = await service.read(request, ChatCompletionRequest, defaults=True)
    name = service.check_model_name(body.model)
    params = _params(service, body)
    keep = tokens_to_keep(body.truncate_prompt_tokens, params.max_tokens, model.max_model_len)
    token_ids = await encode_messages(
        service,
        body.messages,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        add_special_tokens=bool(body.add_special_tokens),
        template_arguments=body.chat_template_kwargs,
        keep=keep,
    )
    service.check_prompt(token_ids, "messages")
    if params.bad_words:
        params = await service.with_bad_words(params)
    request_id = f"chatcmpl-{name_request(request.scope, body.request_id)}"
    check_multiplied(len(token_ids), params.n, model.max_model_len)
    group = await service.requests.submit(
        model.tokenizer,
        [token_ids],
        [service.fit(params, len(token_ids), body.limit)],
        request_id=new_id("chatcmpl"),
        arrival=arrival,
        streaming=bool(body.stream),
        terms=Terms(key, body.priority or 0, body.cache_salt),
    )
    service.log_ignored(body)
    watcher = watch_disconnect(request, lambda: service.requests.cancel(group))
    echo = body.messages[-1].content if body.echo else ""
    writer = ChatWriter(
        body, model, token_ids, request_id, name, echo=echo if isinstance(echo, str) else ""
    )
    writer.choices = group.choices
    if body.stream:
        return EventStream(
            group, writer, watcher=watcher, close=lambda: service.requests.cancel(group)
        )
    try:
        return json_response(writer.whole(await collect(group)))
    finally:
        watcher.cancel()
        service.requests.cancel(group)


async def encode_messages(
    service: Service,
    messages: list[ChatMessage],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
    add_special_tokens: bool,
    template_arguments: dict[str, Any] | None = None,
    keep: int | None = None,
) -> list[int]:
    """Messages through the chat template to token ids, the last `keep` if given.

    Raises `InvalidRequest`.
    """
    if add_generation_prompt and continue_final_message:
        raise InvalidRequest(
            "continue_final_message needs add_generation_prompt=false", "continue_final_message"
        )
    model = service.model
    dicts = message_dicts(messages)
    size = sum(len(message["content"]) for message in dicts)
    if size > model.max_characters and keep is None:
        raise InvalidRequest(
            f"this model's maximum context length is {model.max_model_len} tokens; messages of"
            f" {size} characters are longer than that",
            "messages",
            "context_length_exceeded",
        )
    reserved = {"messages", "tokenize", "chat_template", "add_generation_prompt", "conversation"}
    if wrong := reserved & set(template_arguments or ()):
        raise InvalidRequest(
            f"chat_template_kwargs may not hold {sorted(wrong)}", "chat_template_kwargs"
        )
    text = await service.in_pool(
        lambda: render_chat(
            model.tokenizer,
            dicts,
            chat_template=service.settings.chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_arguments=template_arguments,
        ),
        size=size,
    )
    return await service.encode(text, "messages", add_special_tokens=add_special_tokens, keep=keep)


def _params(service: Service, body: ChatCompletionRequest) -> SamplingParams:
    body.refuse_unsupported(priorities=service.settings.priorities)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs=true", "top_logprobs")
    limit = service.max_logprobs
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= limit:
        raise InvalidRequest(
            f"top_logprobs must be between 0 and {limit}, not {body.top_logprobs}", "top_logprobs"
        )
    asked = body.max_completion_tokens
    if asked is not None and asked < 1:
        raise InvalidRequest(
            f"max_completion_tokens must be at least 1, not {asked}", "max_completion_tokens"
        )
    asked = body.max_tokens if asked is None else asked
    default: int | None = getattr(service.model.defaults, "max_new_tokens", None)
    params = body.sampling_params(
        max_tokens=default if asked is None else asked,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        eos_token_ids=service.model.eos_token_ids,
    )
    params.validate(vocab_size=service.model.vocab_size, max_logprobs=limit)
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs cannot be streamed here", "prompt_logprobs")
    return params


class ChatWriter:
    """The bodies of one request, whole or as events."""

    choices: list[Choice]

    def __init__(
        self,
        body: ChatCompletionRequest,
        model: Model,
        prompt: list[int],
        request_id: str,
        name: str,
        *,
        echo: str,
    ) -> None:
        self._body = body
        self._pieces = model.pieces
        self._prompt = prompt
        self._as_ids = bool(body.return_tokens_as_token_ids)
        self._echo = echo
        self._opened: set[int] = set()
        self._id = request_id
        self._created = int(time.time())
        self._name = name
        self._stream_head: dict[str, Any] = self._head("chat.completion.chunk")
        if not body.stream:
            return
        head = orjson.dumps(self._stream_head)[:-1] + b',"choices":[{"index":'
        self._before_text = [
            b"data: " + head + str(index).encode() + b',"delta":{"content":'
            for index in range(body.n or 1)
        ]
        end = b',"usage":null}\n\n' if body.include_usage else b"}\n\n"
        self._after_plain = b'},"logprobs":null,"finish_reason":null}]' + end
        self._plain = not (body.logprobs or body.continuous_usage or body.return_token_ids)

    def chunk(self, choice: Choice, delta: Delta) -> bytes:
        opening = b""
        if choice.index not in self._opened:
            self._opened.add(choice.index)
            opening = self._event(choice, {"role": "assistant", "content": self._echo})
        if self._plain and delta.finish_reason is None:
            text = orjson.dumps(delta.text)
            return opening + self._before_text[choice.index] + text + self._after_plain
        logprobs = None
        if delta.logprobs is not None:
            logprobs = chat_logprobs(self._pieces, delta.logprobs, as_ids=self._as_ids)
        return opening + self._event(choice, {"content": delta.text}, delta, logprobs)

    def ending(self) -> bytes:
        if not self._body.include_usage:
            return b""
        return event({**self._stream_head, "choices": [], "usage": usage(self.choices)})

    def whole(self, answers: list[Collected]) -> dict[str, Any]:
        """The body of a response that does not stream."""
        choices = [
            {
                "index": answer.choice.index,
                "message": {
                    "role": "assistant",
                    "content": self._echo + answer.text,
                    "refusal": None,
                },
                "logprobs": chat_logprobs(self._pieces, answer.logprobs, as_ids=self._as_ids)
                if self._body.logprobs
                else None,
                "finish_reason": answer.finish_reason,
                "stop_reason": answer.stop_reason,
                **({"token_ids": answer.token_ids} if self._body.return_token_ids else {}),
            }
            for answer in answers
        ]
        body = {**self._head("chat.completion"), "choices": choices, "usage": usage(self.choices)}
        if self._body.return_token_ids:
            body["prompt_token_ids"] = self._prompt
        if self._body.prompt_logprobs is not None:
            body["prompt_logprobs"] = prompt_logprobs(self._pieces, answers[0].prompt_logprobs)
        return body

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._name}

    def _event(
        self,
        choice: Choice,
        content: dict[str, str],
        delta: Delta | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        fields: dict[str, Any] = {
            "index": choice.index,
            "delta": content,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason if delta else None,
        }
        if delta is not None and delta.finish_reason is not None:
            fields["stop_reason"] = delta.stop_reason
        body = {**self._stream_head, "choices": [fields]}
        if self._body.return_token_ids and delta is None:
            body["prompt_token_ids"] = self._prompt
        elif self._body.return_token_ids and delta is not None:
            fields["token_ids"] = delta.token_ids
        if self._body.continuous_usage:
            body["usage"] = usage([choice])
        elif self._body.include_usage:
            body["usage"] = None
        return event(body)
