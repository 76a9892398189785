"""The one owner of requests in flight: what runs in the engine, and who waits for it.

A `Group` is one HTTP request; its `Choice`s are the sequences that the engine runs for it (n for
each of its prompts). A record lives from `submit` until its sequence ends, is cancelled or fails,
and is dropped in one place, `LiveRequests._forget`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from octavo_server.api.admission import Admission
from octavo_server.api.errors import ClientGone
from octavo_server.api.metrics import Metrics
from octavo_server.engine.messages import Abort, Add, Outputs, ToEngine, TokenOutput
from octavo_server.errors import EngineDead
from octavo_server.sampling_params import SamplingParams
from octavo_server.text.assemble import Assembler, Delta

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SEED_LIMIT = 2**63

# Starting a sequence takes about as long as sending this many tokens of a prompt.
_SEQUENCE_TOKENS = 2048
_PAUSE_TOKENS = 32_768  # a few ms of work, after which others have their turn


class Terms(NamedTuple):
    """On which a request is served: which of the server's API keys it came with, its priority (a
    smaller one is first), whom it shares cached prefixes with.
    """

    key: int | None = None
    priority: int = 0
    cache_salt: str | None = None


NO_TERMS = Terms()


class Choice:
    """One sequence. Times are `time.monotonic()` seconds of this process."""

    __slots__ = (
        "assembler",
        "cached_tokens",
        "first_token",
        "group",
        "index",
        "last_token",
        "prompt_index",
        "prompt_tokens",
        "request_id",
        "scheduled",
    )

    def __init__(
        self,
        group: Group,
        index: int,
        prompt_index: int,
        request_id: str,
        prompt_tokens: int,
        assembler: Assembler,
    ) -> None:
        self.group = group
        self.index = index
        self.prompt_index = prompt_index
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.assembler = assembler
        self.cached_tokens = 0
        self.first_token: float | None = None
        self.last_token = 0.0
        self.scheduled: float | None = None


class Group:
    """One HTTP request's sequences and what they brought that its handler has not taken yet."""

    def __init__(
        self, request_id: str, arrival: float, *, streaming: bool, terms: Terms = NO_TERMS
    ) -> None:
        self.request_id = request_id
        self.arrival = arrival
        self.terms = terms
        self.choices: list[Choice] = []
        self.open = 0  # sequences without an end
        self.streaming = streaming
        self._deltas: list[tuple[Choice, Delta]] = []
        self.error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def next(self) -> list[tuple[Choice, Delta]]:
        """Everything new, at least one delta; empty once all sequences ended and all was taken.

        A group that does not stream waits until all its sequences ended. Raises what ended it:
        `EngineDead`, `ClientGone` or the error of one sequence.
        """
        while self.error is None and not self._has_news():
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.error is not None:
            raise self.error
        deltas, self._deltas = self._deltas, []
        return deltas

    def _has_news(self) -> bool:
        return not self.open or (self.streaming and bool(self._deltas))

    def put(self, choice: Choice, delta: Delta) -> None:
        """Add a delta; wakes the handler if it can use it."""
        self._deltas.append((choice, delta))
        if delta.finish_reason is not None:
            self.open -= 1
        if self._waiter is not None and self._has_news():
            self._wake()

    def fail(self, error: BaseException) -> None:
        """End the group; the first error stands."""
        if self.error is None:
            self.error = error
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class LiveRequests:
    """Submits, routes, cancels. `send` is the engine client's and never blocks."""

    def __init__(
        self, send: Callable[[ToEngine], None], metrics: Metrics, admission: Admission
    ) -> None:
        self._send = send
        self._metrics = metrics
        self._admission = admission
        self._choices: dict[str, Choice] = {}
        self._closed: BaseException | None = None

    def __len__(self) -> int:
        """Sequences that the engine holds for us."""
        return len(self._choices)

    async def submit(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        request_id: str,
        arrival: float,
        streaming: bool,
        terms: Terms = NO_TERMS,
    ) -> Group:
        """Start `params[i].n` sequences for each prompt i; everything was validated before.

        Choice indices count through the prompts: prompt 0's n sequences come first. Others have
        their turn between batches. Raises what `Admission.admit` does before anything is started,
        and what `fail_all` was given, if that came meanwhile.
        """
        group = Group(request_id, arrival, streaming=streaming, terms=terms)
        self._check_open(group)
        coming = tokens = 0
        for prompt, asked in zip(prompts, params, strict=True):
            coming += asked.n
            tokens += len(prompt) * asked.n
        self._admission.admit(coming, tokens, terms.key, time.monotonic())
        since_pause = 0
        try:
            for prompt_index, (prompt, asked) in enumerate(zip(prompts, params, strict=True)):
                self._metrics.request_n.observe(asked.n)
                seed = random.getrandbits(63) if asked.seed is None else asked.seed
                token_ids = list(prompt)
                for child in range(asked.n):
                    if since_pause > _PAUSE_TOKENS:
                        since_pause = 0
                        await asyncio.sleep(0)
                        self._check_open(group)
                    self._start(group, tokenizer, token_ids, prompt_index, child, asked, seed)
                    coming -= 1
                    tokens -= len(token_ids)
                    since_pause += len(token_ids) + _SEQUENCE_TOKENS
        except BaseException:
            self._admission.withdrawn(coming, tokens, terms.key)
            self.cancel(group)
            raise
        return group

    def _check_open(self, group: Group) -> None:
        error = self._closed or group.error
        if error is not None:
            raise error

    def _start(
        self,
        group: Group,
        tokenizer: PreTrainedTokenizerBase,
        prompt: list[int],
        prompt_index: int,
        child: int,
        asked: SamplingParams,
        seed: int,
    ) -> None:
        params = msgspec.structs.replace(asked, n=1, seed=(seed + child) % SEED_LIMIT)
        if child:
            params.prompt_logprobs = None
        index = len(group.choices)
        choice = Choice(
            group,
            index,
            prompt_index,
            f"{group.request_id}-{index}",
            len(prompt),
            Assembler(tokenizer, prompt, params),
        )
        group.choices.append(choice)
        group.open += 1
        self._choices[choice.request_id] = choice
        # A stop string ends a sequence where its text is made, here, so its tokens must come.
        stream = group.streaming or bool(params.stop)
        terms = group.terms
        self._send(
            Add(
                choice.request_id,
                prompt,
                params,
                group.arrival,
                cache_salt=terms.cache_salt,
                stream=stream,
                priority=terms.priority,
            )
        )
        self._admission.sent(len(prompt))

    def on_outputs(self, message: Outputs) -> None:
        """Route one step's outputs; those of unknown ids (cancelled ones) are dropped."""
        now = time.monotonic()
        self._metrics.on_step(message.stats)
        self._admission.on_report(message.stats, now)
        stopped: list[str] = []
        for output in message.outputs:
            choice = self._choices.get(output.request_id)
            if choice is None:
                continue
            if output.finish_reason == "error":
                error = EngineDead(output.error or "the engine failed on this request")
                self.cancel(choice.group, error, reason="error")
                continue
            self._time(choice, output, now)
            try:
                delta = choice.assembler.push(output)
            except Exception as error:  # whatever a tokenizer does concerns this request alone
                logger.exception("the answer to %s could not be assembled", output.request_id)
                self.cancel(choice.group, error, reason="error")
                continue
            if delta.finish_reason is not None:
                if delta.stopped_here:
                    stopped.append(choice.request_id)
                self._forget(choice, delta.finish_reason, now)
            choice.group.put(choice, delta)
        if stopped:
            self._send(Abort(stopped))

    def cancel(
        self, group: Group, error: BaseException | None = None, *, reason: str = "abort"
    ) -> None:
        """Stop what still runs of a group and end it with `error` (`ClientGone`); idempotent."""
        now = time.monotonic()
        running = [choice for choice in group.choices if choice.request_id in self._choices]
        if running:
            self._send(Abort([choice.request_id for choice in running]))
            for choice in running:
                self._forget(choice, reason, now)
        group.fail(error or ClientGone("the client closed the connection"))

    def fail_all(self, error: BaseException) -> None:
        """The engine is gone, or the time to drain is over: end every request at once."""
        self._closed = error
        for group in {id(choice.group): choice.group for choice in self._choices.values()}.values():
            self.cancel(group, error, reason="error")

    def _time(self, choice: Choice, output: TokenOutput, now: float) -> None:
        if not output.token_ids:
            return
        metrics = self._metrics
        between = len(output.token_ids)
        if choice.first_token is None:
            between -= 1
            choice.first_token = output.first_token or now
            choice.last_token = choice.first_token
            choice.scheduled = output.scheduled
            choice.cached_tokens = output.cached_tokens or 0
            metrics.prompt_tokens_cached += choice.cached_tokens
            metrics.time_to_first_token.observe(choice.first_token - choice.group.arrival)
        if between:
            # Tokens that came together are taken to have come at equal distances.
            metrics.inter_token_latency.observe((now - choice.last_token) / between, between)
        choice.last_token = now

    def _forget(self, choice: Choice, reason: str, now: float) -> None:
        del self._choices[choice.request_id]
        self._admission.ended(choice.group.terms.key)
        metrics = self._metrics
        metrics.finished[reason] = metrics.finished.get(reason, 0) + 1
        if reason not in ("stop", "length") or choice.first_token is None:
            return
        generated = choice.assembler.completion_tokens
        metrics.request_prompt_tokens.observe(choice.prompt_tokens)
        metrics.request_generation_tokens.observe(generated)
        metrics.e2e_latency.observe(now - choice.group.arrival)
        decode = choice.last_token - choice.first_token
        metrics.decode_time.observe(decode)
        if generated > 1:
            metrics.time_per_output_token.observe(decode / (generated - 1))
        if choice.scheduled is not None:
            metrics.queue_time.observe(max(0.0, choice.scheduled - choice.group.arrival))
            metrics.prefill_time.observe(max(0.0, choice.first_token - choice.scheduled))
            metrics.inference_time.observe(max(0.0, choice.last_token - choice.scheduled))
