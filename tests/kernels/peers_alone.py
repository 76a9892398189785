"""One rank whose peers' data is there before it asks: sums of several ranks on one device."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.peer_sum import BLOCK, PROGRAMS, WORDS, Peers, blocks_of

WORD_CAP = 2 * WORDS
BLOCK_CAP_BYTES = 2 * BLOCK * 4


class PeersAlone:
    """`peers` of rank `rank`, and the inboxes of all ranks, `[ranks]` tensors each."""

    def __init__(self, rank: int, ranks: int, device: str) -> None:
        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        def addresses(tensors: list[Tensor]) -> Tensor:
            return torch.tensor([each.data_ptr() for each in tensors], device=device)

        every = range(ranks)
        self.rank, self.block_launch = rank, 0
        self.word_launches = zeros(WORD_CAP // WORDS, dtype=torch.int64)
        self.words = [zeros(2, ranks, WORD_CAP, dtype=torch.int64) for _ in every]
        self.blocks = [zeros(2, ranks, BLOCK_CAP_BYTES, dtype=torch.uint8) for _ in every]
        cap = blocks_of(BLOCK_CAP_BYTES)
        self.marks = [zeros(ranks, cap, dtype=torch.int32) for _ in every]
        self.peers = Peers(
            rank, ranks, addresses(self.words), WORD_CAP, addresses(self.blocks), BLOCK_CAP_BYTES,
            addresses(self.marks), zeros(WORD_CAP // WORDS, dtype=torch.int32),
            zeros(PROGRAMS, dtype=torch.int32),
        )  # fmt: skip

    def send(self, kind: str, parts: list[Tensor]) -> None:
        """What the other ranks send in the next launch of this kind."""
        if kind == "words":
            self.word_launches[: -(-parts[0].numel() // (2 * WORDS))] += 1
        else:
            self.block_launch += 1
        for source, part in enumerate(parts):
            if source != self.rank:
                self._put(kind, self.rank, source, part)

    def received(self, kind: str, peer: int, part: Tensor) -> bool:
        """Whether `peer` has this rank's part of the last launch."""
        words, blocks, marks = (
            each[peer].clone() for each in (self.words, self.blocks, self.marks)
        )
        self._put(kind, peer, self.rank, part)
        return all(
            torch.equal(before, each[peer])
            for before, each in zip(
                (words, blocks, marks), (self.words, self.blocks, self.marks), strict=True
            )
        )

    def _put(self, kind: str, to: int, source: int, part: Tensor) -> None:
        count = part.numel()
        if kind == "blocks":
            box = self.blocks[to][self.block_launch & 1, source].view(part.dtype)
            box[:count] = part
            self.marks[to][source, : -(-count // BLOCK)] = self.block_launch
            return
        # Each program counts its own launches.
        launch = self.word_launches.repeat_interleave(WORDS)[: count // 2]
        word = torch.arange(count // 2, device=part.device)
        words = part.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
        self.words[to][launch & 1, source, word] = (launch << 32) | words
