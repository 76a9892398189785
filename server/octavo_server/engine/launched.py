"""A step on its way back from the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo_server.engine.messages import TokenLogprobs
from octavo_server.engine.sampler import Judgement
from octavo_server.engine.step import Sampled, Step


@dataclass(slots=True)
class Launched:
    """Its results arrive in host memory when `done` has happened."""

    step: Step
    token_ids: Tensor | None  # int64 [sampled], on the host; None: nothing was sampled
    sampled: list[int]  # their indices in the step
    judgements: list[Judgement]
    prompts: dict[int, list[Judgement]]  # index in the step -> parts of its prompt, in order
    done: torch.cuda.Event | None

    def wait(self) -> Sampled:
        """The step's results, as soon as the device has come past it."""
        if self.done is not None:
            self.done.synchronize()
        step, count = self.step, len(self.step.rows)
        drawn = [] if self.token_ids is None else self.token_ids.tolist()
        if len(drawn) == count:
            result = Sampled(drawn)
        else:
            token_ids: list[int | None] = [None] * count
            for index, token_id in zip(self.sampled, drawn, strict=True):
                token_ids[index] = token_id
            result = Sampled(token_ids)
        if self.judgements:
            logprobs: list[TokenLogprobs | None] = [None] * count
            for judgement in self.judgements:
                for place, entry in zip(judgement.places, judgement.read(), strict=True):
                    logprobs[self.sampled[place]] = entry
            result.logprobs = logprobs
        if self.prompts:
            result.prompt_logprobs = [
                [entry for part in self.prompts.get(index, ()) for entry in part.read()]
                for index in range(len(step.rows))
            ]
        return result
