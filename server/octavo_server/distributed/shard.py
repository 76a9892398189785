"""What one rank of a tensor-parallel group holds of a model, from the config alone. Torch-free.

Query heads, the halves of the MLP and the vocabulary are cut into runs of equal length, one a rank.
Key/value heads are cut likewise; where there are fewer of them than ranks, neighbours hold copies.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from octavo_server.errors import InvalidSettings
from octavo_server.model_config import ModelConfig

HEAD_ROWS = 64
"""A rank's head has a multiple of so many rows: cuBLAS takes 238 us instead of 45 for 50 x 1280 by
50,257 (GPT-2), whose rows of logits are not aligned (H100).
"""

# No host has more GPUs; a damaged config's number of heads must not become a long loop.
_MOST_RANKS = 64


@dataclass(frozen=True, slots=True)
class Span:
    """`[first, first + count)` of a dimension of `of` elements."""

    first: int
    count: int
    of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One rank's part. `config` has this rank's heads and intermediate size; its hidden size and
    vocabulary are the whole model's.

    A rank's logits are of the `width` ids from `first_id` on, the last ranks' partly of ids past
    the vocabulary. `ids` are those that exist: none on the last ranks of a tiny vocabulary.
    """

    rank: int
    size: int
    config: ModelConfig
    query: Span  # rows of the query projection
    key_value: Span  # rows of the key projection, and of the value's
    inner: Span  # rows of the MLP's gate, and of its up projection
    ids: Span
    width: int

    @property
    def first_id(self) -> int:
        return self.rank * self.width


def shard(config: ModelConfig, rank: int, size: int) -> Shard:
    """Raises InvalidSettings, naming the sizes that would work, where `size` does not divide it."""
    _check(config, size)
    assert 0 <= rank < size
    heads = config.num_heads // size
    kv_heads = max(1, config.num_kv_heads // size)
    first_kv_head = rank * config.num_kv_heads // size  # ranks that share one round down to it
    inner = config.intermediate_size // size
    width = -(-config.vocab_size // (HEAD_ROWS * size)) * HEAD_ROWS
    first_id = min(rank * width, config.vocab_size)
    head_size = config.head_size
    return Shard(
        rank=rank,
        size=size,
        config=dataclasses.replace(
            config, num_heads=heads, num_kv_heads=kv_heads, intermediate_size=inner
        ),
        query=Span(rank * heads * head_size, heads * head_size, config.num_heads * head_size),
        key_value=Span(
            first_kv_head * head_size, kv_heads * head_size, config.num_kv_heads * head_size
        ),
        inner=Span(rank * inner, inner, config.intermediate_size),
        ids=Span(first_id, min(width, config.vocab_size - first_id), config.vocab_size),
        width=width,
    )


def sizes_that_work(config: ModelConfig) -> list[int]:
    """Numbers of ranks that this model can be cut for, 1 first."""
    most = min(config.num_heads, _MOST_RANKS)
    return [size for size in range(1, most + 1) if _divides(config, size)]


def _check(config: ModelConfig, size: int) -> None:
    if 1 <= size <= _MOST_RANKS and _divides(config, size):
        return
    raise InvalidSettings(
        f"--tensor-parallel-size {size} does not divide the model's {config.num_heads} attention "
        f"heads, {config.num_kv_heads} key/value heads and intermediate size of "
        f"{config.intermediate_size}; sizes that work: "
        f"{', '.join(map(str, sizes_that_work(config)))}"
    )


def _divides(config: ModelConfig, size: int) -> bool:
    kv_heads = config.num_kv_heads
    return not (
        config.num_heads % size
        or (kv_heads % size and size % kv_heads)
        or config.intermediate_size % size
    )
