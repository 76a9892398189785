"""The bodies of requests: OpenAI's fields and vLLM's extensions, with their types.

Ranges are checked by `SamplingParams.validate`, types here. Fields that Octavo does not know are
accepted and ignored, as clients send many; fields whose silent loss would change an answer are
refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from octavo_server.api.limits import MAX_LIST, MAX_MESSAGES, MAX_SEQUENCES, check_multiplied
from octavo_server.errors import InvalidRequest
from octavo_server.sampling_params import SamplingParams

MAX_STOP_CHARACTERS = 1024  # of one stop string; what it may become is searched with each token


_OFF: tuple[object, ...] = (False, [], {}, "", 0)
_REFUSED: dict[str, tuple[object, ...]] = {
    # Answers of a form that nothing here enforces: {} asks for one, too.
    **dict.fromkeys(
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"), ()
    ),
    **dict.fromkeys(("structural_tag", "guided_whitespace_pattern", "prompt_embeds"), ()),
    "response_format": ({"type": "text"}, {}),
    # Other choices among tokens.
    **dict.fromkeys(("bad_words", "allowed_token_ids", "logits_processors"), _OFF),
    **dict.fromkeys(("use_beam_search", "truncate_prompt_tokens", "thinking_token_budget"), _OFF),
    "best_of": (*_OFF, 1),
    # Other prompts and other answers.
    **dict.fromkeys(("suffix", "tools", "functions", "chat_template", "documents", "audio"), _OFF),
}
"""Fields that would change the answer if they worked, each with the values that ask for nothing."""


class StreamOptions(BaseModel):
    """`include_usage` adds a chunk with the usage, `continuous_usage_stats` puts it in each."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(BaseModel):
    """What completions and chat completions have in common. None means "not given"."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_LIST)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=MAX_LIST)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    logit_bias: Annotated[dict[int, float], Field(max_length=MAX_LIST)] | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    echo: bool | None = None
    user: str | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        options = self.stream_options
        return bool(options and options.include_usage and options.continuous_usage_stats)

    @property
    def ignored(self) -> list[str]:
        """Fields without effect on the answer: unknown, or at best about how it is made."""
        return [name for name in self.model_extra or () if name not in _REFUSED]

    def refuse_unsupported(self) -> None:
        """Raise for the first field that asks for an answer which this server cannot give."""
        for name, value in (self.model_extra or {}).items():
            neutral: tuple[object, ...] | None = _REFUSED.get(name)
            if neutral is not None and value is not None and value not in neutral:
                raise InvalidRequest(
                    "response_format: only the type 'text' is supported"
                    if name == "response_format"
                    else f"{name} is not supported by this server",
                    name,
                )
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream=true", "stream_options")

    def sampling_params(
        self,
        *,
        max_tokens: int | None,
        logprobs: int | None,
        prompt_logprobs: int | None,
        eos_token_ids: list[int],
    ) -> SamplingParams:
        """The parameters as asked, neither validated nor clamped; else their defaults."""
        stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        if any(len(text) > MAX_STOP_CHARACTERS for text in stop):
            raise InvalidRequest(
                f"a stop string has at most {MAX_STOP_CHARACTERS} characters", "stop"
            )
        given = {
            name: value for name in _COPIED_FIELDS if (value := getattr(self, name)) is not None
        }
        return SamplingParams(
            **given,
            stop=stop,
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            eos_token_ids=eos_token_ids,
        )


_COPIED_FIELDS = (
    *("n", "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty"),
    *("frequency_penalty", "repetition_penalty", "stop_token_ids", "ignore_eos", "min_tokens"),
    *("include_stop_str_in_output", "logit_bias", "skip_special_tokens"),
)


class CompletionRequest(GenerationRequest):
    """Body of /v1/completions."""

    # Checked by `parse_prompts`: a union of four list types is slow on long lists of ids.
    prompt: Any = Field(
        description="A text, a list of texts, a list of token ids, or a list of such lists.",
    )
    logprobs: int | None = None


class ChatMessage(BaseModel):
    """One turn. `content` may be a list of parts of type text."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatCompletionRequest(GenerationRequest):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def limit(self) -> str | None:
        """The field that limits the answer; None: none was given."""
        for name in ("max_completion_tokens", "max_tokens"):
            if getattr(self, name) is not None:
                return name
        return None


class TokenizeRequest(BaseModel):
    """Body of /tokenize: a prompt, or messages that go through the chat template."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool = False


class DetokenizeRequest(BaseModel):
    """Body of /detokenize."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    tokens: list[int]


def parse_prompts(prompt: object, n: int, max_model_len: int) -> list[str | list[int]]:
    """The prompts of a completion request, at least one. Raises `InvalidRequest`.

    Lists that are too long are refused on sight: looking at each entry takes its time.
    """
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        several = not isinstance(prompt[0], int)
        if several and len(prompt) * n > MAX_SEQUENCES:
            raise InvalidRequest(
                f"a request may ask for {MAX_SEQUENCES} answers, not {len(prompt)} prompts times"
                f" {n}",
                "prompt",
            )
        given = 0
        for ids in prompt if several else [prompt]:
            if isinstance(ids, list):
                if len(ids) >= max_model_len:
                    raise too_long(len(ids), max_model_len, "prompt")
                given += len(ids)
        check_multiplied(given, n, max_model_len)
        if _is_ids(prompt):
            return [prompt]
        if all(isinstance(item, str) for item in prompt):
            return prompt
        if all(isinstance(item, list) and _is_ids(item) for item in prompt):
            return prompt
    raise InvalidRequest(
        "prompt must be a text, a list of texts, a list of token ids or a list of such lists,"
        " none of them empty",
        "prompt",
    )


def too_long(tokens: int, max_model_len: int, param: str) -> InvalidRequest:
    """OpenAI's answer to a prompt that leaves no room for one more token."""
    return InvalidRequest(
        f"this model's maximum context length is {max_model_len} tokens; the prompt has {tokens},"
        " and at least one must be left for the answer",
        param,
        "context_length_exceeded",
    )


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


def _is_ids(items: list[Any]) -> bool:
    return set(map(type, items)) == {int}
