"""/v1/completions."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from octavo_server.api.collect import Collected, collect, usage
from octavo_server.api.errors import json_response
from octavo_server.api.gate import key_of
from octavo_server.api.limits import check_multiplied
from octavo_server.api.logprobs import completion_logprobs, prompt_logprobs, prompt_offsets
from octavo_server.api.prompts import parse_prompts, tokens_to_keep
from octavo_server.api.protocol import CompletionRequest
from octavo_server.api.request_id import name_request, new_id
from octavo_server.api.requests import Choice, Terms
from octavo_server.api.service import Model, Service, watch_disconnect
from octavo_server.api.streaming import EventStream, event
from octavo_server.errors import InvalidRequest
from octavo_server.sampling_params import SamplingParams
from octavo_server.text.assemble import Delta

DEFAULT_MAX_TOKENS = 16  # OpenAI's, for completions only
_PROMPT_UNITS = 100  # what a prompt costs by itself, in the time of a character
_PAUSE_UNITS = 16_384  # about 5 ms of work, after which others have their turn


@dataclass(slots=True)
class Prompt:
    """One prompt: its ids, and its text as far as it is to be echoed."""

    token_ids: list[int]
    echo: str = ""
    spelled: bool = False  # the echo is the client's text: special tokens stand in it


async def create_completion(service: Service, request: Request) -> Response:
    """Answer one request; whatever is wrong with it is raised."""
    arrival = time.monotonic()
    model = service.model
    key = key_of(request)
    service.admission.check(key, arrival)
    body = await service.read(request, CompletionRequest, defaults=True)
    name = service.check_model_name(body.model)
    params, drops_token = _params(service, body)
    keep = tokens_to_keep(body.truncate_prompt_tokens, params.max_tokens, model.max_model_len)
    prompts = await _encode_all(
        service, body, parse_prompts(body.prompt, params.n, model.max_model_len, keep), keep
    )
    if params.bad_words:
        params = await service.with_bad_words(params)
    tokens = sum(len(prompt.token_ids) for prompt in prompts)
    check_multiplied(tokens, params.n, model.max_model_len)
    limit = None if body.max_tokens is None else "max_tokens"
    request_id = f"cmpl-{name_request(request.scope, body.request_id)}"
    group = await service.requests.submit(
        model.tokenizer,
        [prompt.token_ids for prompt in prompts],
        [service.fit(params, len(prompt.token_ids), limit) for prompt in prompts],
        request_id=new_id("cmpl"),
        arrival=arrival,
        streaming=bool(body.stream),
        terms=Terms(key, body.priority or 0, body.cache_salt),
    )
    service.log_ignored(body)
    watcher = watch_disconnect(request, lambda: service.requests.cancel(group))
    writer = CompletionWriter(body, model, prompts, request_id, name, drops_token=drops_token)
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


def _params(service: Service, body: CompletionRequest) -> tuple[SamplingParams, bool]:
    """Validated parameters, and whether the one token that the engine makes is dropped."""
    body.refuse_unsupported(priorities=service.settings.priorities)
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    drops_token = bool(body.echo) and max_tokens == 0
    wanted = body.prompt_logprobs
    if body.echo and body.logprobs is not None:
        wanted = max(body.logprobs, wanted or 0)
    params = body.sampling_params(
        max_tokens=1 if drops_token else max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=wanted,
        eos_token_ids=service.model.eos_token_ids,
    )
    params.validate(vocab_size=service.model.vocab_size, max_logprobs=service.max_logprobs)
    if body.stream and wanted is not None and params.n > 1:
        raise InvalidRequest("log probabilities of the prompt cannot be streamed with n > 1", "n")
    return params, drops_token


async def _encode_all(
    service: Service, body: CompletionRequest, prompts: list[str | list[int]], keep: int | None
) -> list[Prompt]:
    result: list[Prompt] = []
    since_pause = 0
    for prompt in prompts:
        result.append(await _encode(service, body, prompt, keep))
        # Short prompts are tokenised here, and many of them take long.
        since_pause += len(prompt) + _PROMPT_UNITS
        if since_pause > _PAUSE_UNITS and len(prompts) > 1:
            since_pause = 0
            await asyncio.sleep(0)
    return result


async def _encode(
    service: Service, body: CompletionRequest, prompt: str | list[int], keep: int | None
) -> Prompt:
    if isinstance(prompt, str):
        token_ids = await service.encode(
            prompt, "prompt", add_special_tokens=body.add_special_tokens is not False, keep=keep
        )
        # Of a truncated text, what is left of it is echoed.
        encoded = Prompt(token_ids, prompt, spelled=True) if keep is None else Prompt(token_ids)
    else:
        encoded = Prompt(prompt)
    service.check_prompt(encoded.token_ids, "prompt")
    if not body.echo:
        encoded.echo = ""
    elif not encoded.spelled:
        encoded.echo = await service.decode(encoded.token_ids, skip_special_tokens=True)
    return encoded


class CompletionWriter:
    """The bodies of one request, whole or as events."""

    choices: list[Choice]

    def __init__(
        self,
        body: CompletionRequest,
        model: Model,
        prompts: list[Prompt],
        request_id: str,
        name: str,
        *,
        drops_token: bool,
    ) -> None:
        self._body = body
        self._pieces = model.pieces
        self._prompts = prompts
        self._drops_token = drops_token
        self._opened: set[int] = set()
        self._head: dict[str, Any] = {
            "id": request_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
        }
        if not body.stream:
            return
        head = orjson.dumps(self._head)[:-1] + b',"choices":[{"index":'
        self._before_text = [
            b"data: " + head + str(index).encode() + b',"text":'
            for index in range(len(prompts) * (body.n or 1))
        ]
        end = b',"usage":null}\n\n' if body.include_usage else b"}\n\n"
        self._after_plain = b',"logprobs":null,"finish_reason":null,"stop_reason":null}]' + end
        # Only a plain delta of a choice that was opened takes the short way.
        extras = body.continuous_usage or body.return_token_ids or drops_token
        self._plain = body.logprobs is None and not extras

    def chunk(self, choice: Choice, delta: Delta) -> bytes:
        if self._plain and delta.finish_reason is None and choice.index in self._opened:
            text = orjson.dumps(delta.text)
            return self._before_text[choice.index] + text + self._after_plain
        collected = Collected(choice)
        collected.add(delta)
        opening = choice.index not in self._opened
        self._opened.add(choice.index)
        body = {**self._head, "choices": [self._choice(collected, with_prompt=opening)]}
        if self._body.continuous_usage:
            body["usage"] = usage([choice], dropped_tokens=int(self._drops_token))
        elif self._body.include_usage:
            body["usage"] = None
        return event(body)

    def ending(self) -> bytes:
        if not self._body.include_usage:
            return b""
        return event({**self._head, "choices": [], "usage": self._usage()})

    def whole(self, answers: list[Collected]) -> dict[str, Any]:
        """The body of a response that does not stream."""
        # Prompt log probabilities are computed for a prompt's first sequence only.
        first = {answer.choice.prompt_index: answer for answer in reversed(answers)}
        for answer in answers:
            answer.prompt_logprobs = first[answer.choice.prompt_index].prompt_logprobs
        choices = [self._choice(answer, with_prompt=True) for answer in answers]
        return {**self._head, "choices": choices, "usage": self._usage()}

    def _usage(self) -> dict[str, Any]:
        return usage(self.choices, dropped_tokens=len(self.choices) * self._drops_token)

    def _choice(self, answer: Collected, *, with_prompt: bool) -> dict[str, Any]:
        prompt = self._prompts[answer.choice.prompt_index]
        text, token_ids, entries = answer.text, answer.token_ids, list(answer.logprobs)
        finish_reason, offsets = answer.finish_reason, answer.offsets
        stop_reason = answer.stop_reason
        if self._drops_token:
            text, token_ids, entries, offsets, stop_reason = "", [], [], [], None
            finish_reason = "length" if finish_reason else None
        offsets = [len(prompt.echo) + offset for offset in offsets]
        shown: list[Any] = list(entries)
        if with_prompt and self._body.echo:
            text = prompt.echo + text
            if self._body.logprobs is not None and answer.prompt_logprobs is not None:
                token_ids = prompt.token_ids + token_ids
                shown = [*answer.prompt_logprobs, *entries]
                offsets = (
                    prompt_offsets(
                        self._pieces, prompt.token_ids, prompt.echo if prompt.spelled else ""
                    )
                    + offsets
                )
        choice: dict[str, Any] = {
            "index": answer.choice.index,
            "text": text,
            "logprobs": None
            if self._body.logprobs is None
            else completion_logprobs(
                self._pieces,
                shown,
                token_ids,
                offsets,
                as_ids=bool(self._body.return_tokens_as_token_ids),
            ),
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
        }
        if self._body.prompt_logprobs is not None and with_prompt:
            choice["prompt_logprobs"] = prompt_logprobs(self._pieces, answer.prompt_logprobs)
        if self._body.return_token_ids:
            choice["token_ids"] = [] if self._drops_token else answer.token_ids
            if with_prompt:
                choice["prompt_token_ids"] = prompt.token_ids
        return choice
