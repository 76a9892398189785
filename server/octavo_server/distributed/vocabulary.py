"""Logits lie in slices, one a rank: which id wins over all of them, and all of them together.

A rank's best candidate of a row is a value (a logit, or logit / temperature + noise) and its id,
counted over the whole vocabulary. Both travel as one int64, whose order is the candidates' own:
the larger value first, of equal values the lower id, as on one device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_server.distributed.group import Group

_LARGEST = 2**31 - 1
_LOW_BITS = 2**32 - 1


def candidates(values: Tensor, ids: Tensor) -> Tensor:
    """int64 `[n]` that compare as (value, -id); values float32 `[n]`, ids int64 `[n]` below 2^31.

    NaN has its place in this order too: ranks agree whatever their logits are.
    """
    # + 0.0: of the two zeros, which are equal, one. As integers floats of one sign are in order, or
    # in reverse where it is set.
    bits = (values + 0.0).view(torch.int32).long()
    ordered = torch.where(bits < 0, bits ^ _LARGEST, bits)
    return (ordered << 32) | (_LARGEST - ids)


def best(scores: Tensor, first_id: int) -> Tensor:
    """Each row's best of this rank, as `candidates`; scores `[n, width]`, of the ids from
    `first_id` on.
    """
    own = scores.argmax(1)
    return candidates(scores.gather(1, own[:, None])[:, 0].float(), own + first_id)


def winners(group: Group, own: Tensor) -> Tensor:
    """The best id of each row over all ranks, int64 `[n]`; own is this rank's `candidates`."""
    best = group.all_gather(own[:, None]).amax(1)
    return _LARGEST - (best & _LOW_BITS)


def gather_logits(group: Group, logits: Tensor, vocab_size: int) -> Tensor:
    """A rank's logits `[rows, width] -> [rows, vocab_size]`, of the whole vocabulary."""
    return group.all_gather(logits)[:, :vocab_size]
