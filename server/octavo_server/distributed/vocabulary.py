"""Logits lie in slices, one a rank: all of them together.

What can be drawn without that is in `octavo_kernels.slices`.
"""

from __future__ import annotations

from torch import Tensor

from octavo_server.distributed.group import Group


def gather_logits(group: Group, logits: Tensor, vocab_size: int) -> Tensor:
    """A rank's logits `[rows, width] -> [rows, vocab_size]`, of the whole vocabulary."""
    return group.all_gather(logits)[:, :vocab_size]
