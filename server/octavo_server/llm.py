"""The offline entry: prompts in, completions out, the engine in this very process."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import msgspec

from octavo_server.config import EngineConfig
from octavo_server.engine.build import build_engine
from octavo_server.engine.messages import Add, TokenLogprobs, TokenOutput
from octavo_server.errors import EngineDead, InvalidRequest
from octavo_server.loading.describe import read_generation_defaults
from octavo_server.loading.source import resolve_source
from octavo_server.loading.tokenizer import load_tokenizer
from octavo_server.sampling_params import MAX_SEED, SamplingParams
from octavo_server.text.assemble import Assembler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | list[int]


@dataclass(slots=True)
class Completion:
    """One sample of a prompt; `text` and `token_ids` end where a stop string matched."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


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


class LLM:
    """`LLM("path/or/hub-id", max_model_len=2048).generate(["Hello"],
    SamplingParams(max_tokens=8))`.

    Keyword arguments are those of `EngineConfig`. Raises `StartupError`s. Not for several threads.
    With `tensor_parallel_size` above 1 it is rank 0 itself; `close`, or its process' end, ends the
    others.
    """

    def __init__(self, model: str, **settings: Any) -> None:
        config = EngineConfig(model=model, **settings)
        source = resolve_source(config, lambda _: None)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(
            source, config.tokenizer, config.trust_remote_code
        )
        self.core = build_engine(config, lambda _: None)
        self._defaults = read_generation_defaults(source, config.generation_config)
        self._ids = itertools.count()

    def close(self) -> None:
        """End the processes of other ranks; nothing can be generated afterwards."""
        self.core.close()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Generation]:
        """Complete every prompt; text or token ids, results in the prompts' order.

        `sampling_params` are for all prompts, or a list with those of each. Raises
        `InvalidRequest` before anything runs.
        """
        if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
            prompts = [cast(Prompt, prompts)]
        if isinstance(sampling_params, Sequence):
            each = list(sampling_params)
        else:
            each = [sampling_params or SamplingParams()] * len(prompts)
        if len(each) != len(prompts):
            raise InvalidRequest(
                f"{len(prompts)} prompts but {len(each)} sampling_params", "sampling_params"
            )
        for params in {id(params): params for params in each}.values():
            params.validate(vocab_size=self.core.ready.vocab_size)
        generations = [
            self._prepare(prompt, params)
            for prompt, params in zip(cast(Sequence[Prompt], prompts), each, strict=True)
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
        return generations

    def _take_some(
        self, coming: Iterator[tuple[Generation, Completion, SamplingParams]], live: _Live
    ) -> bool:
        """Give the engine what its next steps can read; whether there was anything.

        The rest comes while the GPU computes: 256 requests take 40 ms to make, a step of 8,192
        tokens of a small model 18 ms.
        """
        tokens = 0
        for generation, completion, params in coming:
            request = self._request(generation, completion, params)
            live[request.request_id] = (
                generation,
                completion,
                Assembler(self.tokenizer, generation.prompt_token_ids, request.params),
            )
            self.core.add(request)
            tokens += len(request.prompt_token_ids)
            if tokens >= _INTAKE_STEPS * self.core.scheduler.config.max_step_tokens:
                break
        return tokens > 0

    def _prepare(self, prompt: Prompt, params: SamplingParams) -> Generation:
        if isinstance(prompt, str):
            text, token_ids = prompt, self.tokenizer.encode(prompt)
        else:
            text, token_ids = None, prompt
        limit = self.core.ready.max_model_len
        if not 0 < len(token_ids) < limit:
            raise InvalidRequest(
                f"the prompt has {len(token_ids)} tokens; between 1 and {limit - 1} fit", "prompt"
            )
        vocab_size = self.core.ready.vocab_size
        if min(token_ids) < 0 or max(token_ids) >= vocab_size:
            raise InvalidRequest(f"the prompt holds ids outside 0 to {vocab_size - 1}", "prompt")
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
        if output.error is not None:
            raise EngineDead(output.error)
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
            del live[output.request_id]
            if delta.stopped_here:
                self.core.abort([output.request_id])
