"""What each GPU of an engine holds, and how many tokens its KV cache has: arithmetic alone.

The terms are those of the engine's start-up line, which measures where this estimates. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo_server.distributed.shard import Shard, shard, sizes_that_work
from octavo_server.errors import InvalidSettings, OutOfMemory
from octavo_server.memory_plan import (
    DTYPE_BYTES,
    CachePlan,
    plan_blocks,
    readable_bytes,
    weight_bytes,
)
from octavo_server.model_config import ModelConfig

# The engine's own: a plan needs no engine. A test compares them.
STEP_TOKENS = 8192
MLP_TOKENS = 4096
EXTRA_ROWS = 32
COUNT_SLOTS = 64

FRAGMENTS = 1.02
"""The memory of steps is a little larger than the largest: pieces do not fit without gaps."""

GRAPHS_BYTES = 52 << 20
"""Of the driver: some 100 graphs of 512 KiB."""

LIBRARY_BYTES = 512 << 20
"""cuBLAS' workspaces and loaded kernels: 0.23 GiB with gpt2-large, 0.57 with llama-8b (H100)."""

NCCL_BYTES = 512 << 20
"""Of NCCL's channels and the inboxes of sums, where there are several GPUs: with it the plan of
llama-8b on two H100s is 0.1% from the engine's number of blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What of an engine's settings decides its memory."""

    dtype: str
    gpu_bytes: int
    utilization: float
    max_model_len: int | None = None
    block_size: int = 16
    max_num_seqs: int = 512
    step_tokens: int = STEP_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPlan:
    """Bytes of one of `size` GPUs, the first, which has most. `cache` None: it does not fit, for
    the reason in `refusal`.
    """

    size: int
    budget: int
    weights: int
    libraries: int
    activations: int
    buffers: int
    graphs: int
    cache: CachePlan | None
    refusal: str

    @property
    def left(self) -> int:
        """For the KV cache; negative where the rest is too much already."""
        taken = self.weights + self.libraries + self.activations + self.buffers + self.graphs
        return self.budget - taken


def plan_gpu(config: ModelConfig, settings: EngineSettings, size: int = 1) -> GpuPlan:
    """Raises InvalidSettings for a size that does not divide the model, or a context that it cannot
    have.
    """
    if not 0 < settings.utilization <= 1:
        raise InvalidSettings(
            f"--gpu-memory-utilization must be above 0 and at most 1, not {settings.utilization:g}"
        )
    first = shard(config, 0, size)
    terms = {
        "budget": int(settings.gpu_bytes * settings.utilization),
        "weights": weight_bytes(config, settings.dtype, size),
        "libraries": LIBRARY_BYTES + (NCCL_BYTES if size > 1 else 0),
        "activations": int(_activations(first, settings) * FRAGMENTS),
        "buffers": _buffers(first.config, settings),
        "graphs": GRAPHS_BYTES,
    }
    left = 2 * terms["budget"] - sum(terms.values())
    cache, refusal = None, ""
    try:
        cache = plan_blocks(
            config,
            block_size=settings.block_size,
            dtype=settings.dtype,
            cache_bytes=max(0, left),
            max_model_len=settings.max_model_len,
            tensor_parallel_size=size,
            remedy="raise --gpu-memory-utilization, or take more or larger GPUs",
        )
    except OutOfMemory as error:
        refusal = str(error)
    if left <= 0:
        taken, budget = terms["budget"] - left, terms["budget"]
        refusal = (
            f"the weights and what a step needs take {readable_bytes(taken)}, more than the budget "
            f"of {readable_bytes(budget)}"
        )
    return GpuPlan(size=size, cache=cache, refusal=refusal, **terms)


def smallest_that_fits(config: ModelConfig, settings: EngineSettings) -> int | None:
    """The fewest GPUs that hold the model and a request of its whole context."""
    for size in sizes_that_work(config):
        if plan_gpu(config, settings, size).cache is not None:
            return size
    return None


def _activations(first: Shard, settings: EngineSettings) -> int:
    """Of the largest step: prompts, or a token of every row and its logits, with the float32 copies
    of rows that ask for log probabilities.
    """
    rows = min(settings.max_num_seqs, settings.step_tokens)
    vocab, hidden = first.config.vocab_size, first.config.hidden_size
    element = DTYPE_BYTES[settings.dtype]
    logits = rows * (first.width * element + hidden * (4 + element))
    if first.size > 1:
        # Of all ranks: as they come, and row by row.
        logits += 2 * rows * first.size * first.width * element
    # Adjusted, raw, their log probabilities, and a comparison of each.
    extra = min(rows, EXTRA_ROWS) * vocab * (3 * 4 + 1)
    decode = max(_layer(first, element, rows), logits) + extra
    return max(_layer(first, element, settings.step_tokens), decode)


def _layer(first: Shard, element: int, tokens: int) -> int:
    """The residual stream, and the widest that a layer holds beside it: normed tokens, a product,
    and what comes of it.
    """
    config, hidden = first.config, first.config.hidden_size
    qkv = first.query.count + 2 * first.key_value.count
    attention = tokens * (qkv + max(hidden, first.query.count))
    inner = config.intermediate_size
    product = inner if config.family == "gpt2" else 2 * inner
    mlp = min(tokens, MLP_TOKENS) * (hidden + product + inner)
    inputs = 3 * 8  # a token's id, position and slot
    return tokens * (hidden * 4 + inputs) + max(attention, mlp) * element


def _buffers(config: ModelConfig, settings: EngineSettings) -> int:
    length = settings.max_model_len
    return buffer_bytes(
        config,
        rows=min(settings.max_num_seqs, settings.step_tokens),
        step_tokens=settings.step_tokens,
        max_model_len=length if length is not None and length > 0 else config.max_position,
        block_size=settings.block_size,
    )


def buffer_bytes(
    config: ModelConfig, *, rows: int, step_tokens: int, max_model_len: int, block_size: int
) -> int:
    """What a runner keeps beside the cache: page tables, the steps' packets and inputs, last
    residuals, token counts.
    """
    tables = 2 * (rows + 1) * -(-max_model_len // block_size) * 4
    counts = COUNT_SLOTS * config.vocab_size * 5
    return tables + step_tokens * 28 + rows * (config.hidden_size * 4 + 128) + counts
