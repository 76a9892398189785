"""What the handlers of one server share, and how a request is read and checked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import orjson
from pydantic import BaseModel
from starlette.requests import Request

from octavo_server.api.admission import Admission, Bounds
from octavo_server.api.errors import Unavailable, UnknownModel
from octavo_server.api.intake import Intake
from octavo_server.api.lifecycle import Lifecycle
from octavo_server.api.limits import check_lengths, check_raw
from octavo_server.api.metrics import Metrics
from octavo_server.api.prompts import too_long, truncated
from octavo_server.api.protocol import OpenBody
from octavo_server.api.requests import LiveRequests
from octavo_server.api.settings import ServeSettings
from octavo_server.engine.messages import (
    Failed,
    FromEngine,
    Heartbeat,
    Outputs,
    Progress,
    Ready,
    ToEngine,
)
from octavo_server.errors import EngineDead, InvalidRequest
from octavo_server.log_lines import seconds_running
from octavo_server.sampling_params import SamplingParams
from octavo_server.text.bad_words import bad_word_ids
from octavo_server.text.pieces import Pieces, pieces_of
from octavo_server.text.prompt import TokenizerPool, apply_defaults, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
Body = TypeVar("Body", bound=BaseModel)
T = TypeVar("T")

# Where a tokenizer's longest token is not known to bound a text's length.
_OPAQUE_CHARACTERS_PER_TOKEN = 1000

_WORD_CHARACTERS = 50  # tokenising a word takes about as long as so many more characters

_MAX_UNKNOWN_FIELDS = 100  # after so many names no more are logged
_UNKNOWN_FIELDS_LOGGED = 20  # of one request
_UNKNOWN_CHARACTERS = 50  # of one name


@dataclass(frozen=True, slots=True)
class Model:
    """What serving needs to know of the loaded model; its engine runs elsewhere."""

    tokenizer: PreTrainedTokenizerBase
    pool: TokenizerPool
    pieces: Pieces
    defaults: Any  # loading.describe.GenerationDefaults
    eos_token_ids: list[int]
    max_model_len: int
    vocab_size: int
    max_characters: int  # a longer text has more than max_model_len tokens, whatever it says
    prefix: list[int]  # the tokenizer puts these before every text


class Service:
    """One server's state. `send` and the messages given to `on_message` are the engine client's."""

    def __init__(
        self,
        settings: ServeSettings,
        *,
        send: Callable[[ToEngine], None],
        progress: Callable[[str], None] = lambda text: None,
        on_loaded: Callable[[], None] = lambda: None,
        on_failed: Callable[[Failed], None] = lambda failed: None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.served_model_names[0], prefix=settings.metrics_prefix)
        self.lifecycle = Lifecycle(step_limit_seconds=settings.step_limit_seconds)
        bounds = Bounds(
            settings.max_num_queued_reqs, settings.max_num_queued_tokens, settings.max_reqs_per_key
        )
        self.admission = Admission(bounds, self.metrics.admission_rejections)
        self.intake = Intake(settings.max_body_bytes, self.metrics.admission_rejections)
        self.requests = LiveRequests(send, self.metrics, self.admission)
        self.created = int(time.time())
        self._progress = progress
        self._on_loaded = on_loaded
        self._on_failed = on_failed
        self._model: Model | None = None
        self._tokenizer: tuple[PreTrainedTokenizerBase, Any] | None = None
        self.ready: Ready | None = None  # the engine's figures, once it is
        self.startup_seconds = 0.0
        self._unknown_fields: set[str] = set()

    # From the loader and the engine.

    def set_tokenizer(self, tokenizer: PreTrainedTokenizerBase, defaults: Any) -> None:
        """The API process's half of loading; ready once the engine is, too."""
        self._tokenizer = (tokenizer, defaults)
        self._complete()

    def set_cache_config(self, labels: dict[str, str]) -> None:
        """Labels of cache_config_info that come from flags; the engine's figures are added."""
        self.metrics.cache_config = labels

    def on_message(self, message: FromEngine) -> None:
        """Everything that the engine says."""
        match message:
            case Outputs():
                self.requests.on_outputs(message)
            case Heartbeat():
                self.lifecycle.beat(message, time.monotonic())
            case Progress():
                self._progress(message.text)
            case Ready():
                self.ready = message
                try:
                    self._complete()
                except Exception as error:
                    logger.exception("start-up failed")
                    self.fail(Failed("StartupFailed", f"{type(error).__name__}: {error}"))
            case Failed():
                self.fail(message)

    def fail(self, failed: Failed) -> None:
        """End every request in flight, refuse all others; the process is about to exit."""
        self.lifecycle.fail(failed.message)
        self.requests.fail_all(EngineDead(f"the engine failed: {failed.message}"))
        self.metrics.engine_gone()
        self._on_failed(failed)

    def _complete(self) -> None:
        if self._tokenizer is None or self.ready is None:
            return
        tokenizer, defaults = self._tokenizer
        pieces = pieces_of(tokenizer)
        longest = max(map(len, tokenizer.get_vocab()), default=1)
        per_token = _OPAQUE_CHARACTERS_PER_TOKEN if pieces.kind == "opaque" else longest
        self._model = Model(
            tokenizer=tokenizer,
            pool=TokenizerPool(tokenizer),
            pieces=pieces,
            defaults=defaults,
            eos_token_ids=list(getattr(defaults, "eos_token_ids", ())),
            max_model_len=self.ready.max_model_len,
            vocab_size=self.ready.vocab_size,
            max_characters=per_token * self.ready.max_model_len,
            prefix=encode(tokenizer, ""),
        )
        self.metrics.set_context_length(self.ready.max_model_len)
        self.admission.set_capacity(
            self.ready.max_num_seqs, (self.ready.num_blocks - 1) * self.ready.block_size
        )
        if self.metrics.cache_config:
            self.metrics.cache_config |= {
                "block_size": str(self.ready.block_size),
                "num_gpu_blocks": str(self.ready.num_blocks),
                "cache_dtype": self.ready.dtype,
            }
        self.startup_seconds = seconds_running()
        self.lifecycle.loaded(time.monotonic())
        self._on_loaded()

    # For the handlers.

    @property
    def model(self) -> Model:
        """The loaded model; `Unavailable` before."""
        if self._model is None:
            self.lifecycle.admit()
            raise Unavailable("the model is still loading: try again soon")
        return self._model

    @property
    def max_logprobs(self) -> int:
        """The most alternatives a request may ask for; no model has more than its vocabulary."""
        return min(self.settings.max_logprobs, self.model.vocab_size)

    async def read(self, request: Request, kind: type[Body], *, defaults: bool = False) -> Body:
        """The request's body as a `kind`. Raises `InvalidRequest`, ValidationError, and what
        `Intake.read_body` does.

        With `defaults`, fields that the body left out get the model's.
        """
        raw = await self.intake.read_body(request)
        check_raw(raw)
        try:
            fields = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"the body is not valid JSON: {error}") from error
        if not isinstance(fields, dict):
            raise InvalidRequest("the body must be a JSON object")
        check_lengths(fields, self.model.max_model_len)
        if defaults:
            fields = apply_defaults(fields, self.model.defaults)
        return kind.model_validate(fields)

    def check_model_name(self, name: str | None) -> str:
        """The name to answer with. None and every served name are right; else `UnknownModel`."""
        names = self.settings.served_model_names
        if name is not None and name not in names:
            raise UnknownModel(f"the model {name!r} does not exist; this server has {names[0]!r}")
        return name or names[0]

    async def encode(
        self, text: str, param: str, *, add_special_tokens: bool, keep: int | None = None
    ) -> list[int]:
        """Token ids of a prompt's text, or the last `keep`; a text that cannot fit is refused
        before it is tokenised.
        """
        model = self.model
        if keep is not None:
            text = text[-2 * model.max_characters :]  # holds more than `keep` tokens for certain
        elif len(text) > model.max_characters:
            raise InvalidRequest(
                f"this model's maximum context length is {model.max_model_len} tokens; a text of"
                f" {len(text)} characters is longer than that",
                param,
                "context_length_exceeded",
            )
        token_ids = await self.in_pool(
            lambda: encode(model.tokenizer, text, add_special_tokens), size=len(text)
        )
        return token_ids if keep is None else truncated(token_ids, keep, model.prefix)

    async def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of a model's ids; those past the tokenizer's vocabulary have none."""
        model = self.model
        known = model.pieces.vocab_size
        return await self.in_pool(
            lambda: str(
                model.tokenizer.decode(
                    [token_id for token_id in token_ids if token_id < known],
                    skip_special_tokens=skip_special_tokens,
                    clean_up_tokenization_spaces=False,
                )
            ),
            size=len(token_ids),
        )

    async def with_bad_words(self, params: SamplingParams) -> SamplingParams:
        """The parameters with the ids of their bad words, as the engine wants them."""
        words = params.bad_words
        model = self.model
        ids = await self.in_pool(
            lambda: bad_word_ids(model.tokenizer, words, model.vocab_size),
            # A word costs more than its characters.
            size=sum(map(len, words)) + _WORD_CHARACTERS * len(words),
        )
        return msgspec.structs.replace(params, bad_words=[], bad_words_token_ids=ids)

    def in_pool(self, work: Callable[[], T], *, size: int) -> Coroutine[Any, Any, T]:
        """Work of the tokenizer that concerns so many characters or tokens, off the event loop."""
        return self.intake.in_pool(self.model.pool, work, size=size)

    def check_prompt(self, token_ids: Sequence[int], param: str) -> None:
        """Raise `InvalidRequest` unless the model can take this prompt and add a token."""
        model = self.model
        if not token_ids:
            raise InvalidRequest("the prompt is empty: it must have at least one token", param)
        if len(token_ids) > model.max_model_len - 1:
            raise too_long(len(token_ids), model.max_model_len, param)
        self.check_ids(token_ids, param)

    def check_ids(self, token_ids: Sequence[int], param: str) -> None:
        """Raise `InvalidRequest` for an id that the model does not have."""
        vocab_size = self.model.vocab_size
        if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
            wrong = next(i for i in token_ids if not 0 <= i < vocab_size)
            raise InvalidRequest(
                f"{param} holds the token id {wrong}; this model's ids are 0 to {vocab_size - 1}",
                param,
            )

    def fit(self, params: SamplingParams, prompt_tokens: int, limit: str | None) -> SamplingParams:
        """A copy of valid parameters whose token limits fit behind this prompt.

        `limit` names the field in which the client gave max_tokens: one that does not fit is
        refused, as vLLM does, while a default (None) is lowered.
        """
        longest = self.model.max_model_len
        room = longest - prompt_tokens
        wanted = params.max_tokens
        if wanted is not None and wanted > room and limit is not None:
            raise InvalidRequest(
                f"this model's maximum context length is {longest} tokens; the prompt has"
                f" {prompt_tokens} and {limit} is {wanted}, {prompt_tokens + wanted} together:"
                f" lower {limit} to {room}, or leave it out",
                limit,
                "context_length_exceeded",
            )
        most = room if wanted is None else min(wanted, room)
        return msgspec.structs.replace(
            params, max_tokens=most, min_tokens=min(params.min_tokens, most)
        )

    def log_ignored(self, body: OpenBody) -> None:
        """Name, once, the fields of an accepted request that had no effect."""
        # NOTE: bounded in number and length, and quoted, as clients choose the names.
        if not body.model_extra or len(self._unknown_fields) >= _MAX_UNKNOWN_FIELDS:
            return
        names = (ascii(name[:_UNKNOWN_CHARACTERS]) for name in body.ignored)
        new = dict.fromkeys(name for name in names if name not in self._unknown_fields)
        if new:
            shown = list(new)[:_UNKNOWN_FIELDS_LOGGED]
            self._unknown_fields.update(shown)
            more = f" and {len(new) - len(shown)} more" if len(new) > len(shown) else ""
            logger.warning("ignored fields of requests, named once: %s%s", ", ".join(shown), more)


def watch_disconnect(request: Request, on_gone: Callable[[], None]) -> asyncio.Task[None]:
    """Calls `on_gone` when the client goes away; the body must be read. Cancel it when done."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        on_gone()

    return asyncio.create_task(watch())
