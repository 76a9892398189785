"""From the residual stream to tokens, where each rank has a slice of the vocabulary.

Rows without filters compare each slice's best score: a number and an id of each rank travel. What
needs the whole distribution (top-k, top-p, min-p, log probabilities, penalties) gathers the slices;
then all ranks do the same with the same numbers, and no token has to be sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from octavo_kernels.ops import Ops
from octavo_server.distributed.group import Group
from octavo_server.distributed.vocabulary import gather_logits
from octavo_server.engine.sampler import Sampler
from octavo_server.models.causal_lm import CausalLM


class Head:
    """The end of every step of one rank. All ranks must call the same methods."""

    def __init__(self, model: CausalLM, group: Group, sampler: Sampler, ops: Ops) -> None:
        self._model, self._group, self._sampler, self._ops = model, group, sampler, ops
        self._first_id = model.shard.first_id
        self.kinds = (0,) if group.size == 1 else (1, 0)
        """What `draw` can be told of slices, the more frequent first."""

    def by_slices(self, rows: Sequence[int]) -> int:
        """1 if all these rows can be drawn by comparing slices, else 0."""
        return int(self._group.size > 1 and not self._sampler.filters(rows))

    def logits(self, residual: Tensor) -> Tensor:
        """float32 `[n, hidden]` -> `[n, vocab]`, of the whole vocabulary on every rank."""
        own = self._model.logits(residual)
        if self._group.size == 1:
            return own
        return gather_logits(self._group, own, self._model.config.vocab_size)

    def draw(self, residual: Tensor, rows: Tensor, positions: Tensor, by_slices: int) -> Tensor:
        """int64 `[n]` ids, also left in the rows' last tokens; rows int32, positions int64 `[n]`.

        `by_slices` is what the method of that name says of these rows.
        """
        if not by_slices:
            return self._sampler.draw(self.logits(residual), rows, positions)
        state = self._sampler.state
        own = self._ops.best_of_slice(
            self._model.logits(residual), rows, positions, state, self._first_id
        )
        every = self._group.all_gather(own[None]).view(self._group.size, -1)
        return self._ops.best_of_all(every, rows, state)
