"""Weights in one piece of memory."""

from __future__ import annotations

import pytest
import torch
from tests.server.models.published_configs import GPT2, LLAMA, MISTRAL, QWEN2, QWEN3

from octavo_kernels.ops import select_ops
from octavo_server.distributed.group import Alone
from octavo_server.model_config import parse_config
from octavo_server.models.registry import _CLASSES
from octavo_server.models.slab import ALIGNMENT, Slab, slab_bytes


class Counting(Slab):
    """Fails where the slab is full."""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        found = super().empty(shape, dtype)
        assert found.untyped_storage().nbytes() == len(self._bytes)
        return found


@pytest.mark.parametrize("config", [LLAMA, GPT2, MISTRAL, QWEN2, QWEN3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_published_model_fits_and_little_is_left(config: dict[str, object], ranks: int) -> None:
    parsed = parse_config(config)
    for rank in {0, ranks - 1}:
        group = Alone(rank, ranks)
        size = slab_bytes(parsed, "bfloat16", ranks)
        slab = Counting(size, torch.device("meta"))
        _CLASSES[parsed.family](
            parsed, select_ops("cpu"), torch.bfloat16, torch.device("meta"), group=group, slab=slab
        )
        if rank == 0:
            assert slab._used > 0.99 * size


def test_tensors_are_aligned_and_apart() -> None:
    slab = Slab(4 * ALIGNMENT, torch.device("cpu"))
    first = slab.empty((3,), torch.float16)
    second = slab.empty((2, 5), torch.float32)
    first.fill_(1)
    second.fill_(2)
    assert second.data_ptr() - first.data_ptr() == ALIGNMENT
    assert first.tolist() == [1] * 3
    assert second.shape == (2, 5)
    assert second.is_contiguous()


def test_where_it_is_full_a_tensor_is_its_own() -> None:
    slab = Slab(ALIGNMENT, torch.device("cpu"))
    large = slab.empty((ALIGNMENT,), torch.float32)
    small = slab.empty((ALIGNMENT,), torch.uint8)
    assert large.untyped_storage().data_ptr() != small.untyped_storage().data_ptr()
