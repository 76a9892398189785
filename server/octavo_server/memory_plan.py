"""How much memory a model and its KV cache take, and what context fits. Torch-free.

One arithmetic for the engine's start-up, `octavo plan` and the operator's condition.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from octavo_server.distributed.shard import shard
from octavo_server.errors import InvalidSettings, OutOfMemory
from octavo_server.model_config import ModelConfig

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# The shortest context of use: a prompt's token and an answer's.
SHORTEST_CONTEXT = 2
# Block 0 is the null block: padding writes there, no request owns it.
RESERVED_BLOCKS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """`num_blocks` includes the null block; `bytes_per_block` is of one rank."""

    num_blocks: int
    block_size: int
    bytes_per_block: int
    max_model_len: int

    @property
    def cache_bytes(self) -> int:
        return self.num_blocks * self.bytes_per_block

    @property
    def cache_tokens(self) -> int:
        return (self.num_blocks - RESERVED_BLOCKS) * self.block_size


def weight_count(config: ModelConfig) -> int:
    """Number of weights; a tied head counts once."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query = config.num_heads * config.head_size
    key_value = 2 * config.num_kv_heads * config.head_size
    layer = hidden * (query + key_value) + query * hidden
    layer += (query + key_value) * config.qkv_bias + hidden * config.output_bias
    if config.family == "gpt2":
        layer += 2 * hidden * inner + (inner + hidden) * config.mlp_bias
        norms, positions = 2 * hidden, config.max_position * hidden  # weight and bias
    else:
        layer += 3 * hidden * inner + (2 * inner + hidden) * config.mlp_bias
        norms, positions = hidden, 0
    layer += 2 * norms + 2 * config.head_size * config.qk_norm
    tables = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    return config.num_layers * layer + tables + positions + norms


def weight_bytes(config: ModelConfig, dtype: str, tensor_parallel_size: int = 1) -> int:
    """Bytes of all weights in `dtype`; of several ranks, of the first one's, which has most.

    Raises InvalidSettings for a size that does not divide the model.
    """
    if tensor_parallel_size == 1:
        return weight_count(config) * DTYPE_BYTES[dtype]
    first = shard(config, 0, tensor_parallel_size)
    # Its ids, and the two rows of zeros around its table.
    rows = first.width + 2 if config.tie_word_embeddings else first.width + 1
    held = weight_count(dataclasses.replace(first.config, vocab_size=rows))
    return held * DTYPE_BYTES[dtype]


def kv_bytes_per_block(
    config: ModelConfig, block_size: int, dtype: str, tensor_parallel_size: int = 1
) -> int:
    """Bytes of one block's keys and values over all layers, on one rank."""
    # Ranks past the number of key/value heads hold copies.
    heads = max(1, config.num_kv_heads // tensor_parallel_size)
    return 2 * config.num_layers * heads * block_size * config.head_size * DTYPE_BYTES[dtype]


def longest_context(num_blocks: int, block_size: int) -> int:
    """Tokens of the longest single request that a cache of `num_blocks` holds."""
    return max(0, num_blocks - RESERVED_BLOCKS) * block_size


def blocks_for(context_tokens: int, block_size: int) -> int:
    """Size of a cache that holds one request of that length."""
    return -(-context_tokens // block_size) + RESERVED_BLOCKS


def plan_blocks(
    config: ModelConfig,
    *,
    block_size: int,
    dtype: str,
    cache_bytes: int,
    max_model_len: int | None,
    tensor_parallel_size: int = 1,
    num_blocks: int | None = None,
    remedy: str | None = None,
) -> CachePlan:
    """Cut `cache_bytes` (of one rank) into blocks and settle the context length.

    `max_model_len` None is the model's own, -1 the longest that fits; `num_blocks`, if given, wins
    over `cache_bytes`. `remedy` says how to get a larger cache where no flag states its size.
    Raises OutOfMemory naming the length that would fit, InvalidSettings for
    lengths the model cannot do.
    """
    wanted = config.max_position if max_model_len is None else max_model_len
    if wanted != -1 and wanted < SHORTEST_CONTEXT:
        raise InvalidSettings(
            f"--max-model-len must be {SHORTEST_CONTEXT} at least (a prompt's token and an "
            f"answer's) or -1 (what fits), not {wanted}"
        )
    if wanted > config.max_position:
        raise InvalidSettings(
            f"--max-model-len {wanted} is more than the model's {config.max_position} positions"
        )
    block_bytes = kv_bytes_per_block(config, block_size, dtype, tensor_parallel_size)
    blocks = cache_bytes // block_bytes if num_blocks is None else num_blocks
    fits = min(longest_context(blocks, block_size), config.max_position)
    length = fits if wanted == -1 else wanted
    if fits < SHORTEST_CONTEXT or length > fits:
        needed = blocks_for(max(SHORTEST_CONTEXT, length), block_size)
        more = remedy or f"--kv-cache-memory-bytes {needed * block_bytes}"
        if num_blocks is not None:
            more = f"--num-gpu-blocks-override {needed}"
        given = max(0, blocks) * block_bytes
        raise OutOfMemory(_refusal(length, fits, needed * block_bytes, given, more))
    return CachePlan(
        num_blocks=blocks,
        block_size=block_size,
        bytes_per_block=block_bytes,
        max_model_len=length,
    )


def _refusal(length: int, fits: int, needed_bytes: int, given_bytes: int, more: str) -> str:
    needed, given = readable_bytes(needed_bytes), readable_bytes(given_bytes)
    if fits < SHORTEST_CONTEXT:
        what = "a single block of tokens" if fits < 1 else "a prompt's token and an answer's"
        return f"the KV cache has {given}, too little for {what}; give it {needed} at least: {more}"
    return (
        f"a context of {length} tokens needs a KV cache of {needed} but it has {given}; the "
        f"longest context that fits is {fits}: pass --max-model-len {fits} (or -1: what fits), or "
        f"{more}"
    )


def readable_bytes(count: int) -> str:
    """In the largest unit of which there is one: `1.50 GiB`, `12.25 MiB`, `96.00 KiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"
