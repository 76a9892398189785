"""Octavo's inference engine and its OpenAI-compatible server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo_server.llm import LLM
    from octavo_server.sampling_params import SamplingParams

__all__ = ["LLM", "SamplingParams"]


def __getattr__(name: str) -> object:
    # Lazy: the operator's image imports this package's memory plan and has no torch.
    if name == "LLM":
        from octavo_server.engine.spinning import short_spins

        os.environ.update(short_spins(os.environ))  # before torch, unless that is there already
        from octavo_server.llm import LLM

        return LLM
    if name == "SamplingParams":
        from octavo_server.sampling_params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
