"""One request inside the engine: its tokens, its pages, how far it is computed."""

from __future__ import annotations

from enum import Enum, auto

from octavo_server.engine.block_pool import extend_hashes
from octavo_server.engine.messages import Add, TokenLogprobs, TokenOutput

NO_ROW = -1


class Status(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """Tokens `[0, num_computed)` have their keys and values in `block_ids`, or will once the steps
    in flight have run; the rest are to be computed.

    `num_pending` more tokens than `token_ids` holds were sampled by steps in flight: the device
    knows them, the host does not yet. At `max_num_tokens` the sequence ends. A preempted sequence
    keeps its tokens and computes them again: known tokens are replayed, never sampled a second
    time.
    """

    __slots__ = (
        "arrival",
        "block_ids",
        "cached_tokens",
        "first_token",
        "hashes",
        "logprobs",
        "max_num_tokens",
        "needs_counts",
        "num_computed",
        "num_pending",
        "num_prompt_tokens",
        "num_published",
        "params",
        "priority",
        "prompt_logprobs",
        "request_id",
        "row",
        "salt",
        "scheduled",
        "status",
        "stop_ids",
        "streams",
        "token_ids",
        "turn",
    )

    def __init__(self, request: Add, max_model_len: int) -> None:
        self.request_id = request.request_id
        self.params = request.params
        self.stop_ids = request.params.stop_ids
        self.needs_counts = request.params.needs_counts
        self.arrival = request.arrival
        self.salt = request.cache_salt
        self.priority = request.priority
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_computed = 0
        self.num_pending = 0
        most = request.params.max_tokens
        self.max_num_tokens = (
            max_model_len if most is None else min(max_model_len, self.num_prompt_tokens + most)
        )
        self.block_ids: list[int] = []
        self.hashes: list[bytes] = []
        self.num_published = 0
        self.row = NO_ROW
        self.status = Status.WAITING
        self.turn = 0  # its place among those who wait (`Waiting`)
        self.streams = request.stream
        # Of a request that does not stream: kept for its one output.
        self.first_token: float | None = None
        self.logprobs: list[TokenLogprobs] | None = None
        self.cached_tokens: int | None = None
        self.scheduled: float | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] | None = (
            None if request.params.prompt_logprobs is None else [None]
        )

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) + self.num_pending - self.num_computed

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def holds_off_stops(self) -> bool:
        """Whether its newest token comes too early to be a stop."""
        return self.num_output_tokens <= self.params.min_tokens

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether prompt positions are still to be judged: they must be computed, not found in the
        cache.
        """
        return self.prompt_logprobs is not None

    def take_output(self, token_id: int, logprobs: TokenLogprobs | None) -> TokenOutput:
        """What a stream gets for its newest token."""
        output = TokenOutput(self.request_id, [token_id])
        if logprobs is not None:
            output.logprobs = [logprobs]
        if self.num_output_tokens == 1:
            output.cached_tokens = self.cached_tokens
            output.scheduled = self.scheduled
            output.prompt_logprobs, self.prompt_logprobs = self.prompt_logprobs, None
        return output

    def keep_output(self, logprobs: TokenLogprobs | None, now: float) -> None:
        """Its newest token became known `now`, and nobody waits for it."""
        if self.first_token is None:
            self.first_token = now
        if logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs.append(logprobs)

    def take_whole_output(self) -> TokenOutput:
        """All that `keep_output` kept."""
        return TokenOutput(
            self.request_id,
            self.token_ids[self.num_prompt_tokens :],
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            cached_tokens=self.cached_tokens,
            scheduled=self.scheduled,
            first_token=self.first_token,
        )

    def extend_hashes(self, block_size: int) -> list[bytes]:
        """Keys of all full blocks of known tokens."""
        extend_hashes(self.hashes, self.token_ids, block_size, self.salt)
        return self.hashes
