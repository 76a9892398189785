"""The layers that models are made of, each as one rank holds it.

A product that comes out of a norm has a rank's share of the outputs (column-parallel: no rank needs
another's). One that goes into the residual stream has a share of the inputs (row-parallel): its
sums are the ranks' together. The residual stream and the norms are whole on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo_kernels.ops import ActivationName, Ops
from octavo_server.distributed.group import Group
from octavo_server.distributed.shard import Shard, Span
from octavo_server.models.slab import Slab
from octavo_server.models.slot import Piece, Slot, whole


@dataclass(frozen=True, slots=True)
class Makings:
    """What all layers of one rank's model are made with."""

    shard: Shard
    group: Group
    ops: Ops
    dtype: torch.dtype
    device: torch.device
    slab: Slab | None = None

    def empty(self, *shape: int) -> Tensor:
        if self.slab is not None:
            return self.slab.empty(shape, self.dtype)
        return torch.empty(shape, dtype=self.dtype, device=self.device)


class Norm:
    """RMSNorm, or LayerNorm where it has a bias; always computed together with what reads it."""

    def __init__(self, makings: Makings, bias: bool) -> None:
        config = makings.shard.config
        self.eps = config.norm_eps
        self.weight = makings.empty(config.hidden_size)
        self.bias = makings.empty(config.hidden_size) if bias else None

    def slots(self, name: str) -> dict[str, Slot]:
        found = {f"{name}.weight": whole(self.weight)}
        if self.bias is not None:
            found[f"{name}.bias"] = whole(self.bias)
        return found


class Linear:
    """`x @ weight.T + bias`; the weight is opaque after `prepare`."""

    def __init__(self, makings: Makings, outs: int, ins: int, bias: bool) -> None:
        self.ops = makings.ops
        self.weight = makings.empty(outs, ins)
        self.bias = makings.empty(outs) if bias else None

    def prepare(self) -> None:
        self.weight = self.ops.prepare_linear(self.weight)


class NormedLinear(Linear):
    """A product of the normed residual stream: this rank's share of each of its parts.

    `parts` are the rows of the weight, in this order; each is a tensor of its own in a checkpoint.
    """

    def __init__(self, makings: Makings, parts: dict[str, Span], bias: bool) -> None:
        outs = sum(span.count for span in parts.values())
        super().__init__(makings, outs, makings.shard.config.hidden_size, bias)
        self.parts = parts

    def of_norm(
        self, residual: Tensor, norm: Norm, activation: ActivationName | None = None
    ) -> Tensor:
        """`activation(linear(norm(residual)))`, `[tokens, outs]` ("silu_mul": half of them)."""
        return self.ops.norm_linear(
            residual, norm.weight, norm.bias, norm.eps, self.weight, self.bias, activation
        )

    def slots(self) -> dict[str, Slot]:
        sizes = [span.count for span in self.parts.values()]
        found = {}
        for (name, span), rows in zip(self.parts.items(), self.weight.split(sizes), strict=True):
            found[f"{name}.weight"] = Slot(
                (span.of, rows.shape[1]), (Piece(rows, (span.first, 0)),)
            )
        if self.bias is not None:
            for (name, span), rows in zip(self.parts.items(), self.bias.split(sizes), strict=True):
                found[f"{name}.bias"] = Slot((span.of,), (Piece(rows, (span.first,)),))
        return found


class ResidualLinear(Linear):
    """A product that goes into the residual stream, over this rank's share of the inputs.

    The first rank adds the bias.
    """

    def __init__(self, makings: Makings, ins: Span, bias: bool) -> None:
        super().__init__(
            makings, makings.shard.config.hidden_size, ins.count, bias and makings.group.rank == 0
        )
        self.group, self.ins, self.has_bias = makings.group, ins, bias

    def add_to(self, residual: Tensor, x: Tensor) -> None:
        """`residual += linear(x)`, in place; x `[tokens, ins.count]`."""
        if self.group.size == 1:
            self.ops.linear_add(x, self.weight, self.bias, residual)
        else:
            self.group.add_sum_(residual, self.ops.linear(x, self.weight, self.bias))

    def slots(self, name: str) -> dict[str, Slot]:
        outs = len(self.weight)
        found = {
            f"{name}.weight": Slot((outs, self.ins.of), (Piece(self.weight, (0, self.ins.first)),))
        }
        if self.has_bias:
            pieces = () if self.bias is None else (Piece(self.bias, (0,)),)
            found[f"{name}.bias"] = Slot((outs,), pieces)
        return found


class Embedding:
    """The token table, and the head where they are tied: the rows of this rank's ids.

    Where there are several ranks, a row of zeros lies before and behind the table's: the ids of
    other ranks are looked up there, and the sum over ranks is the one row that is somewhere. It
    travels in float32, so that it is exact with a position's row added to it.
    """

    def __init__(self, makings: Makings) -> None:
        shard, tied = makings.shard, makings.shard.config.tie_word_embeddings
        hidden = shard.config.hidden_size
        self.ops, self.group, self.shard = makings.ops, makings.group, shard
        border = 1 if shard.size > 1 else 0
        count = shard.ids.count
        held = makings.empty((shard.width if tied else count) + 2 * border, hidden)
        held[:border].zero_()
        held[border + count :].zero_()
        self._table = held if border else held[:count]
        # Views of the weights that checkpoints fill; the head's is gone once that is prepared.
        self.table = self.head = held[border : border + count]
        if tied:
            self._head = held[border : border + shard.width]
        else:
            self._head = makings.empty(shard.width, hidden)
            self._head[count:].zero_()
            self.head = self._head[:count]

    def __call__(
        self, token_ids: Tensor, positions: Tensor, position_table: Tensor | None = None
    ) -> Tensor:
        """The residual stream's start, the same on all ranks; one rank alone gives a
        `position_table`.
        """
        if self.group.size == 1:
            return self.ops.embed(token_ids, self._table, positions, position_table)
        ids = self.shard.ids
        before = ids.first - 1
        own = token_ids.clamp(before, ids.first + ids.count).sub_(before)
        residual = self.ops.embed(own, self._table, positions, position_table)
        self.group.all_reduce_(residual)
        return residual

    def logits(self, residual: Tensor, norm: Norm) -> Tensor:
        logits = self.ops.norm_linear(residual, norm.weight, norm.bias, norm.eps, self._head)
        count = self.shard.ids.count
        if self.group.size == 1:
            return logits[:, :count]
        if count < self.shard.width:
            logits[:, count:].fill_(-torch.inf)
        return logits

    def slots(self, table: str, head: str) -> dict[str, Slot]:
        """Both tensors' slots, the head's only where it is not the table."""
        ids = self.shard.ids
        found = (
            {table: self.table} if self.head is self.table else {table: self.table, head: self.head}
        )
        return {
            name: Slot((ids.of, view.shape[1]), (Piece(view, (ids.first, 0)),))
            for name, view in found.items()
        }

    def prepare(self) -> None:
        # The table stays plain for look-ups: a tied head is a copy where the layout differs.
        self._head = self.ops.prepare_linear(self._head)
        del self.head
