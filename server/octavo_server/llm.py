"""The offline entry: prompts in, completions out, the engine in this very process."""

from __future__ import annotations

import itertools
import logging
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from octavo_server.engine.build import build_engine
from octavo_server.engine.messages import Add, TokenLogprobs, TokenOutput
from octavo_server.errors import EngineDead, InvalidRequest
from octavo_server.llm_arguments import (
    checked_config,
    checked_conversations,
    checked_params,
    checked_prompts,
)
from octavo_server.loading.describe import read_generation_defaults
from octavo_server.loading.source import resolve_source
from octavo_server.loading.tokenizer import load_tokenizer
from octavo_server.sampling_params import MAX_SEED, SamplingParams
from octavo_server.text.assemble import Assembler
from octavo_server.text.bad_words import bad_word_ids
from octavo_server.text.prompt import encode, render_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | list[int]
Given = Prompt | Mapping[str, Any]
"""A prompt, or vLLM's {"prompt": text} or {"prompt_token_ids": ids}."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Completion:
    """One sample of a prompt; `text` and `token_ids` end where a stop string matched.

    Where `finish_reason` is "error", `error` says why; what it had by then may be missing.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    error: str | None = None


@dataclass(slots=True)
class Generation:
    """A prompt and its `n` completions."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[Completion]
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int = 0


_Live = dict[str, tuple[Generation, Completion, Assembler]]

# Steps' worth of prompt tokens that are given to the engine before each step.
_INTAKE_STEPS = 2
_INTAKE_SECONDS = 0.01


class LLM:
    """`LLM("path/or/hub-id", max_model_len=2048).generate(["Hello"],
    SamplingParams(max_tokens=8))`.

    Keyword arguments are the fields of `EngineConfig`, which says their defaults. Raises
    `StartupError`s, `InvalidSettings` for arguments that are wrong. Not for several threads. With
    `tensor_parallel_size` above 1 it is rank 0 itself; `close`, or its process' end, ends the
    others.
    """

    def __init__(self, model: str | os.PathLike[str], **settings: Any) -> None:
        config = checked_config(model, settings)
        source = resolve_source(config, lambda _: None)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(
            source, config.tokenizer, config.trust_remote_code
        )
        self.core = build_engine(config, lambda _: None)
        self._defaults = read_generation_defaults(source, config.generation_config)
        self._ids = itertools.count()
        self._closed = False

    def close(self) -> None:
        """End the processes of other ranks; nothing can be generated afterwards."""
        self._closed = True
        self.core.close()

    def generate(
        self,
        prompts: Given | Sequence[Given],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Generation]:
        """Complete every prompt; text or token ids, results in the prompts' order.

        `sampling_params` are for all prompts, or a list with those of each. Their `max_tokens` end
        at the context's end, with finish_reason "length". Raises `InvalidRequest` before anything
        runs, and `EngineDead` where nothing more can run, as after `close`. What else fails, a step
        without memory for one, ends its own completions (`Completion.error`).
        """
        if self._closed:
            raise EngineDead("this LLM is closed: nothing can be generated any more")
        checked = checked_prompts(prompts)
        each = checked_params(sampling_params, len(checked), self.core.ready.vocab_size)
        each = self._with_bad_words(each)
        generations = [
            self._prepare(prompt, params, f"prompt {index} of {len(checked)}")
            for index, (prompt, params) in enumerate(zip(checked, each, strict=True))
        ]
        live: _Live = {}
        coming = (
            (generation, completion, params)
            for generation, params in zip(generations, each, strict=True)
            for completion in generation.outputs
        )
        try:
            while self._take_some(coming, live) or live:
                report = self.core.step()
                for output in report.outputs if report else ():
                    self._deliver(output, live)
        finally:
            self.core.abort(list(live))
        _log_failures(generations)
        return generations

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[Generation]:
        """`generate` for conversations: one list of messages, or several; a `Generation` each.

        `chat_template` is the text of a template, None the model's own. Raises `InvalidRequest`.
        """
        if add_generation_prompt and continue_final_message:
            raise InvalidRequest("continue_final_message needs add_generation_prompt=False")
        texts = [
            render_chat(
                self.tokenizer,
                conversation,
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                template_arguments=chat_template_kwargs,
            )
            for conversation in checked_conversations(messages)
        ]
        # The template wrote the special tokens.
        prompts = [encode(self.tokenizer, text, add_special_tokens=False) for text in texts]
        generations = self.generate(prompts, sampling_params)
        for generation, text in zip(generations, texts, strict=True):
            generation.prompt = text
        return generations

    def _take_some(
        self, coming: Iterator[tuple[Generation, Completion, SamplingParams]], live: _Live
    ) -> bool:
        """Give the engine what its next steps can read; whether there was anything.

        The rest comes while the GPU computes: 256 requests take 40 ms to make, a step of 8,192
        tokens of a small model 18 ms. What is cached takes no step: so, besides, for a while.
        """
        tokens = 0
        until = time.monotonic() + (_INTAKE_SECONDS if live else 0.0)
        for generation, completion, params in coming:
            request = self._request(generation, completion, params)
            live[request.request_id] = (
                generation,
                completion,
                Assembler(self.tokenizer, generation.prompt_token_ids, request.params),
            )
            self.core.add(request)
            tokens += len(request.prompt_token_ids)
            enough = tokens >= _INTAKE_STEPS * self.core.scheduler.config.max_step_tokens
            if enough and time.monotonic() >= until:
                break
        return tokens > 0

    def _with_bad_words(self, each: list[SamplingParams]) -> list[SamplingParams]:
        """The same, those that name bad words with their ids."""
        if not any(params.bad_words for params in each):
            return each
        found: dict[int, SamplingParams] = {}
        for params in each:
            if id(params) not in found:  # often one for all prompts
                ids = bad_word_ids(self.tokenizer, params.bad_words, self.core.ready.vocab_size)
                found[id(params)] = msgspec.structs.replace(params, bad_words_token_ids=ids)
        return [found[id(params)] for params in each]

    def _prepare(self, prompt: Prompt, params: SamplingParams, name: str) -> Generation:
        if isinstance(prompt, str):
            text, token_ids = prompt, self.tokenizer.encode(prompt)
        else:
            text, token_ids = None, prompt
        limit = self.core.ready.max_model_len
        if not 0 < len(token_ids) < limit:
            raise InvalidRequest(
                f"{name} (counted from 0) has {len(token_ids)} tokens; between 1 and {limit - 1} "
                "fit",
                "prompt",
            )
        vocab_size = self.core.ready.vocab_size
        if min(token_ids) < 0 or max(token_ids) >= vocab_size:
            raise InvalidRequest(
                f"{name} (counted from 0) holds ids outside 0 to {vocab_size - 1}", "prompt"
            )
        completions = [
            Completion(index, logprobs=None if params.logprobs is None else [])
            for index in range(params.n)
        ]
        return Generation(text, list(token_ids), completions)

    def _request(
        self, generation: Generation, completion: Completion, params: SamplingParams
    ) -> Add:
        room = self.core.ready.max_model_len - len(generation.prompt_token_ids)
        seed = random.randint(0, MAX_SEED) if params.seed is None else params.seed
        own = msgspec.structs.replace(
            params,
            n=1,
            seed=(seed + completion.index) & MAX_SEED,
            max_tokens=room if params.max_tokens is None else min(room, params.max_tokens),
            eos_token_ids=params.eos_token_ids or self._defaults.eos_token_ids,
            prompt_logprobs=params.prompt_logprobs if completion.index == 0 else None,
        )
        return Add(
            str(next(self._ids)),
            generation.prompt_token_ids,
            own,
            time.monotonic(),
            # A stop string ends a request as soon as it is seen, which is here.
            stream=bool(params.stop),
        )

    def _deliver(self, output: TokenOutput, live: _Live) -> None:
        if output.request_id not in live:
            return
        generation, completion, assembler = live[output.request_id]
        delta = assembler.push(output)
        completion.text += delta.text
        completion.token_ids += delta.token_ids
        if completion.logprobs is not None:
            completion.logprobs += delta.logprobs or []
        if delta.prompt_logprobs is not None:
            generation.prompt_logprobs = delta.prompt_logprobs
        if output.cached_tokens is not None and completion.index == 0:
            generation.cached_tokens = output.cached_tokens
        if delta.finish_reason is not None:
            completion.finish_reason = delta.finish_reason
            completion.stop_reason = delta.stop_reason
            # Text that was held back may have completed a stop string: then nothing is missing.
            completion.error = output.error if delta.finish_reason == "error" else None
            del live[output.request_id]
            if delta.stopped_here:
                self.core.abort([output.request_id])


def _log_failures(generations: list[Generation]) -> None:
    """One line for whoever reads the texts alone."""
    made = [completion for generation in generations for completion in generation.outputs]
    failed = [completion.error for completion in made if completion.error is not None]
    if failed:
        logger.error(
            '%d of %d completions failed (finish_reason "error"), the first: %s',
            len(failed),
            len(made),
            failed[0],
        )
