"""What the HTTP side is told by the command line; the engine's part is `EngineConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo_server.api.cors import Cors
    from octavo_server.api.tls import TlsFiles

MIB = 1024 * 1024
MAX_NUM_QUEUED_REQS = 4096  # more than one request may ask for (limits.MAX_SEQUENCES)
MAX_NUM_QUEUED_TOKENS = 4 * MIB  # as many as one request may have (limits.MAX_REQUEST_TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """`served_model_names`: the first is what answers carry, all are accepted.

    `step_limit_seconds`: a step of the engine that runs longer is taken for a hang (`/health` 503).
    `max_num_queued_reqs` and `max_num_queued_tokens` bound what waits, `max_reqs_per_key` the
    sequences of one API key that wait or run; 0 is none. `chat_template`: the template's text, None
    for the model's own.
    """

    served_model_names: tuple[str, ...]
    max_logprobs: int = 20
    max_body_bytes: int = 32 * MIB
    max_num_queued_reqs: int = MAX_NUM_QUEUED_REQS
    max_num_queued_tokens: int = MAX_NUM_QUEUED_TOKENS
    max_reqs_per_key: int = 0
    priorities: bool = False  # whether requests may say theirs
    shutdown_timeout_seconds: float = 30.0
    step_limit_seconds: float = 300.0
    metrics_prefix: str = "vllm:"
    chat_template: str | None = None
    api_keys: tuple[str, ...] = ()
    tls: TlsFiles | None = None
    cors: Cors | None = None
