"""What the HTTP side is told by the command line; the engine's part is `EngineConfig`."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """`served_model_names`: the first is what answers carry, all are accepted.

    `step_limit_seconds`: a step of the engine that runs longer is taken for a hang (`/health` 503).
    `chat_template`: the template's text, None for the model's own.
    """

    served_model_names: tuple[str, ...]
    max_logprobs: int = 20
    max_body_bytes: int = 32 * MIB
    shutdown_timeout_seconds: float = 30.0
    step_limit_seconds: float = 300.0
    metrics_prefix: str = "vllm:"
    chat_template: str | None = None
    api_keys: tuple[str, ...] = ()
