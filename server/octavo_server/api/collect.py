"""A whole answer out of deltas, for responses that do not stream, and the usage of both kinds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from octavo_server.api.requests import Choice, Group
from octavo_server.engine.messages import TokenLogprobs
from octavo_server.text.assemble import Delta


@dataclass(slots=True)
class Collected:
    """One choice, complete."""

    choice: Choice
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        if delta.logprobs is not None:
            self.logprobs += delta.logprobs
            self.offsets += delta.offsets or ()
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason

    @property
    def text(self) -> str:
        return "".join(self.texts)


async def collect(group: Group) -> list[Collected]:
    """All choices of a group in order of index, once all ended. Raises what `Group.next` raises."""
    result = [Collected(choice) for choice in group.choices]
    while deltas := await group.next():
        for choice, delta in deltas:
            result[choice.index].add(delta)
    return result


def usage(choices: list[Choice], *, dropped_tokens: int = 0) -> dict[str, Any]:
    """OpenAI's usage: a prompt counts once, however many choices it has."""
    first = {choice.prompt_index: choice for choice in reversed(choices)}.values()
    prompt = sum(choice.prompt_tokens for choice in first)
    completion = sum(choice.assembler.completion_tokens for choice in choices) - dropped_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(choice.cached_tokens for choice in first)},
    }
