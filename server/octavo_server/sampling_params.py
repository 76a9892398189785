"""What a request asks of the sampler; the same names and meanings as OpenAI's API and vLLM's."""

from __future__ import annotations

import math

import msgspec

from octavo_server.errors import InvalidRequest

MAX_SEED = 2**63 - 1
MAX_ALLOWED = 4096  # ids that the device keeps for a row, 8 bytes each
MAX_BAD_WORDS = 1024


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Parameters of one request; crosses the process border as msgpack.

    `top_k` 0 or -1 and `top_p` 1 are off; `temperature` 0 is greedy. `max_tokens` None means
    "until max_model_len". `eos_token_ids` (from the model's generation config) and
    `bad_words_token_ids` are filled by whoever tokenises the request, never by a client.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: list[str] = []
    stop_token_ids: list[int] = []
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] | None = None
    skip_special_tokens: bool = True
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = []
    bad_words_token_ids: list[list[int]] = []
    eos_token_ids: list[int] = []

    def validate(self, *, vocab_size: int, max_logprobs: int = 20) -> None:
        """Raise `InvalidRequest` for the first field out of range."""
        _check_number("temperature", self.temperature, 0.0, 2.0)
        _check_number("top_p", self.top_p, 0.0, 1.0, exclude_low=True)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, exclude_low=True)
        if not 1 <= self.n <= 128:
            raise InvalidRequest(f"n must be between 1 and 128, not {self.n}", "n")
        if not -1 <= self.top_k < 2**31:
            raise InvalidRequest(
                f"top_k must be -1, 0 (both: off) or positive, not {self.top_k}", "top_k"
            )
        if self.seed is not None and not -(2**63) <= self.seed <= MAX_SEED:
            raise InvalidRequest("seed must fit a signed 64-bit integer", "seed")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidRequest(
                f"max_tokens must be at least 1, not {self.max_tokens}", "max_tokens"
            )
        if self.min_tokens < 0 or (
            self.max_tokens is not None and self.min_tokens > self.max_tokens
        ):
            raise InvalidRequest("min_tokens must be between 0 and max_tokens", "min_tokens")
        if len(self.stop) > 4 or any(not text for text in self.stop):
            raise InvalidRequest("stop takes up to 4 strings, none of them empty", "stop")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= max_logprobs:
                raise InvalidRequest(
                    f"{name} must be between 0 and {max_logprobs}, not {value}", name
                )
        _check_ids("stop_token_ids", self.stop_token_ids, vocab_size)
        if self.allowed_token_ids is not None:
            if not 1 <= len(self.allowed_token_ids) <= MAX_ALLOWED:
                raise InvalidRequest(
                    f"allowed_token_ids takes 1 to {MAX_ALLOWED} ids", "allowed_token_ids"
                )
            _check_ids("allowed_token_ids", self.allowed_token_ids, vocab_size)
        if len(self.bad_words) > MAX_BAD_WORDS or not all(map(str.strip, self.bad_words)):
            raise InvalidRequest(
                f"bad_words takes up to {MAX_BAD_WORDS} words, none of them empty", "bad_words"
            )
        if self.logit_bias:
            if len(self.logit_bias) > 1024:
                raise InvalidRequest("logit_bias takes at most 1024 entries", "logit_bias")
            _check_ids("logit_bias", self.logit_bias, vocab_size)
            for value in self.logit_bias.values():
                _check_number("logit_bias", value, -100.0, 100.0)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end the sequence: EOS unless ignored, and the request's own."""
        eos = () if self.ignore_eos else self.eos_token_ids
        return frozenset(self.stop_token_ids) | frozenset(eos)

    @property
    def needs_counts(self) -> bool:
        """Whether the sampler must know which tokens this request already has."""
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )


def _check_number(
    name: str, value: float, low: float, high: float, *, exclude_low: bool = False
) -> None:
    in_range = (
        math.isfinite(value) and (low < value if exclude_low else low <= value) and value <= high
    )
    if not in_range:
        border = "(" if exclude_low else "["
        raise InvalidRequest(f"{name} must be in {border}{low:g}, {high:g}], not {value}", name)


def _check_ids(name: str, ids: object, vocab_size: int) -> None:
    for token_id in ids:  # type: ignore[attr-defined]
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"{name} holds {token_id}; this model's ids are 0 to {vocab_size - 1}", name
            )
