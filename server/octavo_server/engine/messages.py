"""What crosses the border between the API process and the engine process (msgpack over ZMQ).

The engine knows token ids only: text, stop strings and usage live in the API process.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from octavo_server.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]


class Add(msgspec.Struct, tag="add"):
    """Start a request. Everything in it was validated; the engine trusts it.

    `request_id` is unique among live requests; for n > 1 the API process sends n of these, with
    ids and seeds of their own. `params.seed` is never None here: an unseeded request drew its
    seed in the API process. `arrival` is `time.monotonic()` seconds (one clock for all processes of
    a host). `cache_salt` separates prefix-cache tenants. With `stream` False nobody needs a token
    before the last: the engine sends one output, at the end, and need not spare the request the
    steps of others' long prompts. A smaller `priority` is served first.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival: float
    cache_salt: str | None = None
    stream: bool = True
    priority: int = 0


class Abort(msgspec.Struct, tag="abort"):
    """Forget these requests and free what they hold; unknown ids are ignored.

    Outputs already on their way may still arrive: the receiver drops outputs of ids it does not
    know.
    """

    request_ids: list[str]


class Shutdown(msgspec.Struct, tag="shutdown"):
    """Leave the loop at once; what still runs is dropped."""


class TokenLogprobs(msgspec.Struct, array_like=True):
    """Log probabilities at one position, taken before temperature and penalties (as vLLM's
    raw_logprobs).

    `top_ids`/`top_logprobs` hold the requested number of best tokens, best first. `rank` is the
    chosen token's 1-based rank in the vocabulary.
    """

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class TokenOutput(msgspec.Struct, omit_defaults=True, gc=False):
    """What one step brought to one request; for one that does not stream, all steps together.

    A request whose `finish_reason` is set gets nothing afterwards. On "stop", `stop_token_id` is
    the id that ended it and is the last of `token_ids` (the API process drops it from the text when
    it is special or a stop id). `prompt_logprobs` comes once, with the first token: entry 0 is
    None, entry i judges prompt token i. `cached_tokens` (prompt tokens found in the prefix cache)
    and `scheduled` (monotonic time of first scheduling) come with the first token, else are None.
    `first_token` is the monotonic time at which the first token became known, where it did so
    before this output was sent.
    """

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int | None = None
    scheduled: float | None = None
    first_token: float | None = None
    error: str | None = None


class EngineStats(msgspec.Struct, omit_defaults=True):
    """Gauges after a step, and counters since the previous message.

    `waiting_tokens` are those that the waiting requests have; `added` counts the `Add`s taken in.
    """

    running: int
    waiting: int
    kv_cache_usage: float
    preemptions: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    step_tokens: int = 0
    waiting_tokens: int = 0
    added: int = 0


class Ready(msgspec.Struct, tag="ready"):
    """The engine loaded and made its first real step; the figures that the API process validates
    against.
    """

    max_model_len: int
    vocab_size: int
    block_size: int
    num_blocks: int
    max_num_seqs: int
    dtype: str
    device: str


class Progress(msgspec.Struct, tag="progress"):
    """One line for people while the engine starts: the stage and seconds it took so far."""

    text: str


class Outputs(msgspec.Struct, tag="outputs"):
    """One message a step for all requests that got something; also sent, empty, when gauges
    changed.

    `now` is the monotonic time at which the step's tokens became known.
    """

    outputs: list[TokenOutput]
    stats: EngineStats
    now: float


class Heartbeat(msgspec.Struct, tag="heartbeat"):
    """Sent every second from a thread of the engine process, so that a stuck step is told from an
    idle engine.

    `step_started` is the monotonic time at which the step now running began, None between steps; a
    dead process sends nothing, a busy one says for how long.
    """

    now: float
    has_work: bool
    steps_done: int
    step_started: float | None = None


class Failed(msgspec.Struct, tag="failed"):
    """The engine cannot go on (or never started); the process exits after sending this.

    `reason` is that of an `errors.StartupError`, or "EngineFailed".
    """

    reason: str
    message: str
    exit_code: int = 1


ToEngine = Add | Abort | Shutdown
FromEngine = Ready | Progress | Outputs | Heartbeat | Failed
