"""Tokens that a row may not draw: all but the allowed ones, and those that would end a bad word.

A bad word of several tokens bans its last one where the row's newest outputs are the others. The
newest of them only the device knows, so they are kept there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ANY = -1  # in front of words shorter than the longest: matches whatever was drawn
_NONE = -2  # drawn by nobody


class Bans:
    """Of one row. `outputs` are the ids that it has generated so far."""

    def __init__(
        self,
        allowed: Sequence[int] | None,
        bad_words: Sequence[Sequence[int]],
        outputs: Sequence[int],
        device: torch.device,
    ) -> None:
        # int64 [ids], None: all
        self._allowed = None if allowed is None else torch.tensor(allowed, device=device)
        width = max(map(len, bad_words), default=1) - 1
        begins = [[_ANY] * (width + 1 - len(word)) + list(word[:-1]) for word in bad_words]
        newest = list(outputs[len(outputs) - width :]) if len(outputs) >= width else list(outputs)
        newest = [_NONE] * (width - len(newest)) + newest

        def ids(values: object) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        self._begins = ids(begins).view(len(bad_words), width)  # [words, longest - 1]
        self._ends = ids([word[-1] for word in bad_words])  # [words]
        self._newest = ids(newest)  # [longest - 1]

    def keep_allowed(self, logits: Tensor) -> None:
        """Mask all but the allowed ids of `[vocab]`, in place."""
        if self._allowed is not None:
            kept = logits[self._allowed]
            logits.fill_(-torch.inf)
            logits[self._allowed] = kept

    def ban_words(self, logits: Tensor) -> None:
        """Mask what would end a bad word in `[vocab]`, in place."""
        if not len(self._ends):
            return
        begun = ((self._begins == self._newest) | (self._begins == _ANY)).all(1)
        most = torch.where(begun, -torch.inf, torch.inf)
        # Two words may end alike, of which one has begun: the least counts.
        logits.scatter_reduce_(0, self._ends, most.to(logits.dtype), "amin")

    def note(self, drawn: Tensor) -> None:
        """The row drew `[1]`."""
        if len(self._newest):
            # NOTE: in place, for what a step allocates lies in the pool that its graphs write over.
            self._newest.copy_(torch.cat((self._newest[1:], drawn)))
