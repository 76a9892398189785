"""One sequence's answer: the engine's tokens in, text that may be shown out.

Ids and log probabilities are released together with their text, so a reader never learns of a token
whose text is still held back (an incomplete character, or the beginning of a possible stop string).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo_server.engine.messages import TokenLogprobs, TokenOutput
from octavo_server.sampling_params import SamplingParams
from octavo_server.text.detokenize import detokenizer_for
from octavo_server.text.stops import StopMatcher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(slots=True)
class Delta:
    """What one engine output adds to what a client may see.

    `logprobs` is None unless they were asked for; else it and `offsets` (where each token begins
    in the answer's text, in characters) are as long as `token_ids`. `completion_tokens` counts all
    tokens so far, up to the one that completed a stop string, never those after it; it runs ahead
    of `token_ids` while text is held back. `stopped_here`: a stop string matched while the engine
    still runs, so the caller sends `Abort`.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: str | None
    stop_reason: str | int | None
    stopped_here: bool
    completion_tokens: int
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    offsets: list[int] | None = None


@dataclass(slots=True)
class _Held:
    """A token whose text is not out yet; `end` is None while its last character is incomplete."""

    token_id: int
    logprob: TokenLogprobs | None
    start: int
    end: int | None


class Assembler:
    """Turns the outputs of one request (one child, if n > 1) into deltas."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
    ) -> None:
        self._detokenizer = detokenizer_for(
            tokenizer, prompt_token_ids, skip_special_tokens=params.skip_special_tokens
        )
        self._stops = (
            StopMatcher(params.stop, include_in_output=params.include_stop_str_in_output)
            if params.stop
            else None
        )
        self._min_tokens = params.min_tokens
        self._stop_ids_have_text = params.include_stop_str_in_output
        self._own_stop_ids = frozenset(params.stop_token_ids)
        self._wants_logprobs = params.logprobs is not None
        self._seen = 0  # characters that the detokeniser gave
        self._released = 0  # of those, characters that are out
        self._held: list[_Held] = []
        self.completion_tokens = 0
        self.finished = False

    def push(self, output: TokenOutput) -> Delta:
        """Take one output of the engine; outputs after the end give an empty delta."""
        if len(output.token_ids) > 1 and self._is_whole(output):
            return self._push_whole(output)
        text, match = "", None
        last = len(output.token_ids) - 1
        finish = None if self.finished else output.finish_reason
        token_ids = [] if self.finished else output.token_ids
        released: list[_Held] = []
        for index, token_id in enumerate(token_ids):
            silent = (
                index == last and output.stop_token_id is not None and not self._stop_ids_have_text
            )
            logprob = output.logprobs[index] if output.logprobs else None
            new, match = self._take(token_id, logprob, silent, released)
            text += new
            if match is not None:
                break
        if finish is not None and match is None:
            new, match = self._end()
            text += new
        self.finished = self.finished or finish is not None or match is not None
        if self.finished:
            released += self._held
            self._held = []
        return Delta(
            text=text,
            token_ids=[token.token_id for token in released],
            logprobs=(
                [token.logprob for token in released if token.logprob is not None]
                if self._wants_logprobs
                else None
            ),
            finish_reason="stop" if match is not None else finish,
            stop_reason=match if match is not None else self._stop_id(finish, output),
            stopped_here=match is not None and output.finish_reason is None,
            completion_tokens=self.completion_tokens,
            prompt_logprobs=output.prompt_logprobs,
            offsets=[token.start for token in released] if self._wants_logprobs else None,
        )

    def _is_whole(self, output: TokenOutput) -> bool:
        """Whether this is all that comes, and nothing may end it early or asks where tokens lie."""
        plain = self._stops is None and not self._wants_logprobs
        return plain and output.finish_reason is not None and not (self.finished or self._held)

    def _push_whole(self, output: TokenOutput) -> Delta:
        """`push`, a token at 0.1 us instead of 2."""
        token_ids = output.token_ids
        silent = output.stop_token_id is not None and not self._stop_ids_have_text
        text = self._detokenizer.push_all(token_ids[:-1] if silent else token_ids)
        self.finished = True
        self.completion_tokens += len(token_ids)
        return Delta(
            text=text + self._detokenizer.flush() if self._detokenizer.pending else text,
            token_ids=token_ids,
            logprobs=None,
            finish_reason=output.finish_reason,
            stop_reason=self._stop_id(output.finish_reason, output),
            stopped_here=False,
            completion_tokens=self.completion_tokens,
            prompt_logprobs=output.prompt_logprobs,
        )

    def _take(
        self, token_id: int, logprob: TokenLogprobs | None, silent: bool, released: list[_Held]
    ) -> tuple[str, str | None]:
        detokenizer = self._detokenizer
        start = self._seen
        new = "" if silent else detokenizer.push(token_id)
        self._seen += len(new)
        self.completion_tokens += 1
        match = None
        if self._stops is not None:
            if self.completion_tokens > self._min_tokens:
                new, match = self._stops.push(new)
            else:
                new = self._stops.flush() + new
        self._released += len(new)
        if not self._held and not detokenizer.pending and self._released == self._seen:
            released.append(_Held(token_id, logprob, start, self._seen))
            return new, match
        if not detokenizer.pending:
            for token in self._held:
                if token.end is None:
                    token.end = self._seen
        end = None if detokenizer.pending else self._seen
        self._held.append(_Held(token_id, logprob, start, end))
        ready = 0
        for token in self._held:
            if token.end is None or token.end > self._released:
                break
            ready += 1
        released += self._held[:ready]
        del self._held[:ready]
        return new, match

    def _end(self) -> tuple[str, str | None]:
        """Release what is held; the last incomplete character may still complete a stop string."""
        tail = self._detokenizer.flush() if self._detokenizer.pending else ""
        if self._stops is None:
            return tail, None
        if tail and self.completion_tokens > self._min_tokens:
            text, match = self._stops.push(tail)
            return text + self._stops.flush(), match
        return self._stops.flush() + tail, None

    def _stop_id(self, finish: str | None, output: TokenOutput) -> int | None:
        """vLLM's `stop_reason`: the id for one of the request's own stop ids, None for EOS."""
        if finish == "stop" and output.stop_token_id in self._own_stop_ids:
            return output.stop_token_id
        return None
