"""Sums of several ranks, as one of them computes them. With real peers: tests/gpu/test_ranks.py."""

from __future__ import annotations

import pytest
import torch

from octavo_kernels.peer_sum import BLOCK, WORDS, sum_blocks, sum_torch, sum_words

from .peers_alone import PeersAlone
from .tables import DEVICES

DEVICE = DEVICES["triton"]
# The interpreter takes a second a thousand programs; every size of a launch has all its programs.
WORD_COUNTS = (2, 4 * WORDS, 2 * WORDS - 6, 4 * WORDS)
BLOCK_COUNTS = (14, BLOCK + 3)


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize(("rank", "ranks"), [(0, 2), (1, 2), (2, 4)])
def test_words(rank: int, ranks: int, add: bool) -> None:
    alone = PeersAlone(rank, ranks, DEVICE)
    for count in WORD_COUNTS:
        parts = [torch.randn(count).to(DEVICE, torch.float16) for _ in range(ranks)]
        out = torch.randn(count, device=DEVICE) if add else torch.empty_like(parts[0])
        wanted = out.clone()
        sum_torch(parts, wanted, add)
        alone.send("words", parts)
        sum_words(alone.peers, parts[rank], out, add)
        torch.testing.assert_close(out, wanted, atol=1e-6, rtol=1e-6)
        for peer in set(range(ranks)) - {rank}:
            assert alone.received("words", peer, parts[rank])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("rank", "ranks"), [(0, 2), (1, 3)])
def test_blocks(rank: int, ranks: int, dtype: torch.dtype) -> None:
    alone = PeersAlone(rank, ranks, DEVICE)
    for count in BLOCK_COUNTS:
        parts = [torch.randn(count).to(DEVICE, dtype) for _ in range(ranks)]
        out = torch.randn(count, device=DEVICE)
        wanted = out.clone()
        sum_torch(parts, wanted, True)
        alone.send("blocks", parts)
        sum_blocks(alone.peers, parts[rank], out, True)
        torch.testing.assert_close(out, wanted, atol=1e-6, rtol=1e-6)
        for peer in set(range(ranks)) - {rank}:
            assert alone.received("blocks", peer, parts[rank])


def test_a_sum_in_place() -> None:
    alone = PeersAlone(0, 2, DEVICE)
    parts = [torch.randn(BLOCK + 1, device=DEVICE) for _ in range(2)]
    wanted = parts[0] + parts[1]
    alone.send("blocks", parts)
    sum_blocks(alone.peers, parts[0], parts[0], False)
    torch.testing.assert_close(parts[0], wanted)
