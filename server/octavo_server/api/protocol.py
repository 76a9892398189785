"""The bodies of requests: OpenAI's fields and vLLM's extensions, with their types.

Ranges are checked by `SamplingParams.validate`, types here. What stands here is what the server
acts on; `refused.py` has the rest.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from octavo_server.api.conversation import ChatMessage
from octavo_server.api.limits import MAX_LIST, MAX_MESSAGES
from octavo_server.api.refused import is_refused, refuse
from octavo_server.errors import InvalidRequest
from octavo_server.sampling_params import MAX_ALLOWED, SamplingParams

MAX_STOP_CHARACTERS = 1024  # of one stop string; what it may become is searched with each token
MAX_SALT_CHARACTERS = 1024
MAX_PRIORITY = 2**31 - 1


def field(text: str, **limits: Any) -> Any:
    """A field that may be left out or null, and what is said of it."""
    return Field(None, description=text, **limits)


class StreamOptions(BaseModel):
    """`include_usage` adds a chunk with the usage, `continuous_usage_stats` puts it in each."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class OpenBody(BaseModel):
    """A body that may hold fields which the server does not act on."""

    model_config = ConfigDict(extra="allow")

    @property
    def ignored(self) -> list[str]:
        """Fields without effect on the answer: unknown, or at best about how it is made."""
        return [name for name in self.model_extra or () if not is_refused(name)]

    def refuse_extra(self) -> None:
        """Raise for the first field that asks for what this server cannot give."""
        if self.model_extra:
            refuse(self.model_extra)


class GenerationRequest(OpenBody):
    """What completions and chat completions have in common. None means "not given"."""

    model: str | None = field("a served name; left out: the first")
    n: int | None = field("answers to each prompt, 1 to 128")
    stream: bool | None = field("server-sent events, a chunk a token")
    stream_options: StreamOptions | None = field(
        "`include_usage`: a last chunk with the usage; `continuous_usage_stats`: in each chunk, too"
    )
    temperature: float | None = field("0 (greedy) to 2; the model's own default, else 1")
    top_p: float | None = field("above 0, to 1 (off)")
    top_k: int | None = field("0 or -1: off")
    min_p: float | None = field("0 (off) to 1")
    seed: int | None = field("64 bits, signed; the same seed and batch give the same answer")
    presence_penalty: float | None = field("-2 to 2")
    frequency_penalty: float | None = field("-2 to 2")
    repetition_penalty: float | None = field("above 0; 1: off; counts the prompt, too")
    stop: str | Annotated[list[str], Field(max_length=MAX_LIST)] | None = field(
        "up to 4 texts of up to 1,024 characters that end the answer"
    )
    stop_token_ids: Annotated[list[int], Field(max_length=MAX_LIST)] | None = field(
        "up to 1,024 ids that end the answer"
    )
    include_stop_str_in_output: bool | None = field("keep what ended the answer in its text")
    ignore_eos: bool | None = field("go on past the model's end of text")
    max_tokens: int | None = field("of the answer; left out: 16, in chats what fits the context")
    min_tokens: int | None = field("before any end: stop texts and ids, too")
    logit_bias: Annotated[dict[int, float], Field(max_length=MAX_LIST)] | None = field(
        "up to 1,024 ids with -100 to 100"
    )
    allowed_token_ids: Annotated[list[int], Field(max_length=MAX_ALLOWED)] | None = field(
        "up to 4,096 ids: nothing else is drawn, the end of text neither unless it is there"
    )
    bad_words: Annotated[list[str], Field(max_length=MAX_LIST)] | None = field(
        "up to 1,024 texts that are not written, with or without a space before them; spelled by"
        " other tokens they may be"
    )
    prompt_logprobs: int | None = field(
        "per token of the prompt, with so many alternatives (`--max-logprobs`); not in streams"
    )
    skip_special_tokens: bool | None = field("false: show them in the text")
    add_special_tokens: bool | None = field(
        "those that the tokenizer puts before a text; in chats false, as the template writes them"
    )
    truncate_prompt_tokens: int | None = field(
        "keep so many of the prompt's last tokens; -1: as many as leave room for the answer"
    )
    echo: bool | None = field("the prompt before the answer; in chats the last message")
    priority: int | None = field(
        "smaller ones are served first; needs `--scheduling-policy priority`, else only 0"
    )
    cache_salt: str | None = field(
        "up to 1,024 characters: only requests with the same salt share cached prefixes",
        max_length=MAX_SALT_CHARACTERS,
    )
    return_token_ids: bool | None = field("`token_ids` and `prompt_token_ids` beside the text")
    return_tokens_as_token_ids: bool | None = field(
        "`token_id:N` for the tokens of log probabilities"
    )
    request_id: str | None = field("as the header `X-Request-Id`, which wins")

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        options = self.stream_options
        return bool(options and options.include_usage and options.continuous_usage_stats)

    def refuse_unsupported(self, *, priorities: bool) -> None:
        """Raise for the first field that asks for what this server cannot give."""
        self.refuse_extra()
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream=true", "stream_options")
        if self.cache_salt == "":
            raise InvalidRequest("cache_salt must not be empty", "cache_salt")
        if self.priority and not priorities:
            raise InvalidRequest(
                "priority needs a server with --scheduling-policy priority", "priority"
            )
        if abs(self.priority or 0) > MAX_PRIORITY:
            raise InvalidRequest(f"priority must be within {MAX_PRIORITY} of 0", "priority")

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
        if any(len(text) > MAX_STOP_CHARACTERS for text in (*stop, *(self.bad_words or ()))):
            raise InvalidRequest(
                f"a text of stop or bad_words has at most {MAX_STOP_CHARACTERS} characters",
                "bad_words" if all(len(text) <= MAX_STOP_CHARACTERS for text in stop) else "stop",
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
    *("allowed_token_ids", "bad_words"),
)


class CompletionRequest(GenerationRequest):
    """Body of /v1/completions."""

    # Checked by `parse_prompts`: a union of four list types is slow on long lists of ids.
    prompt: Any = Field(
        description="a text, a list of texts, a list of token ids, or a list of such lists"
    )
    logprobs: int | None = field("with so many alternatives (`--max-logprobs`, 20)")


class ChatCompletionRequest(GenerationRequest):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(max_length=MAX_MESSAGES)] = Field(
        description="turns with `role` and `content`, a text or parts of type text"
    )
    max_completion_tokens: int | None = field("as max_tokens, and wins")
    logprobs: bool | None = field("of the answer's tokens")
    top_logprobs: int | None = field("with so many alternatives (`--max-logprobs`, 20)")
    add_generation_prompt: bool = Field(
        True, description="end the prompt with the beginning of an answer"
    )
    continue_final_message: bool = Field(
        False, description="go on with the last message; needs add_generation_prompt=false"
    )
    chat_template_kwargs: dict[str, Any] | None = field("variables for the model's chat template")

    @property
    def limit(self) -> str | None:
        """The field that limits the answer; None: none was given."""
        for name in ("max_completion_tokens", "max_tokens"):
            if getattr(self, name) is not None:
                return name
        return None


class TokenizeRequest(OpenBody):
    """Body of /tokenize: a prompt, or messages that go through the chat template."""

    model: str | None = field("a served name; left out: the first")
    prompt: str | None = field("a text; or messages")
    messages: Annotated[list[ChatMessage], Field(max_length=MAX_MESSAGES)] | None = field(
        "a chat's, as its template writes them; or a prompt"
    )
    add_special_tokens: bool | None = field(
        "those that the tokenizer puts before a text; with messages false"
    )
    add_generation_prompt: bool = Field(True, description="as in chats")
    continue_final_message: bool = Field(False, description="as in chats")
    chat_template_kwargs: dict[str, Any] | None = field("as in chats")
    return_token_strs: bool | None = field("`token_strs`: each token's text")


class DetokenizeRequest(OpenBody):
    """Body of /detokenize."""

    model: str | None = field("a served name; left out: the first")
    tokens: list[int] = Field(description="ids, as many as the context at most")
