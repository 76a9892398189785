"""How many bytes the KV cache gets: a stated amount on CPU, what `gpu_memory_utilization` leaves on
a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch

from octavo_server.config import EngineConfig
from octavo_server.errors import OutOfMemory
from octavo_server.models.causal_lm import Batch, CausalLM

CPU_CACHE_BYTES = 1 << 30
"""Default on CPU, where the machine's memory belongs to others too."""


def stated_cache_bytes(config: EngineConfig, device: torch.device) -> int | None:
    """Bytes for keys and values of all layers where no measuring is needed to know them."""
    if config.kv_cache_memory_bytes is not None:
        return config.kv_cache_memory_bytes
    return CPU_CACHE_BYTES if device.type == "cpu" else None


def check_host_memory(cache_bytes: int) -> None:
    """Raise `OutOfMemory` if the host cannot back a cache of this size.

    The kernel would promise it all the same and kill the process once the pages are written.
    """
    available = psutil.virtual_memory().available
    if cache_bytes > available:
        raise OutOfMemory(
            f"the machine could not give the KV cache its {cache_bytes / (1 << 30):.2f} GiB: "
            f"{available / (1 << 30):.2f} GiB of its memory are available; "
            "pass a smaller --kv-cache-memory-bytes"
        )


def measure_cache_bytes(
    config: EngineConfig,
    model: CausalLM,
    *,
    device: torch.device,
    dtype: torch.dtype,
    max_step_tokens: int,
    progress: Callable[[str], None],
) -> int:
    """Bytes of a GPU that are left for keys and values: runs the largest step once to see.

    Raises `OutOfMemory` when nothing is left.
    """
    weights = torch.cuda.memory_allocated(device)
    activations = _peak_of_largest_step(config, model, device, dtype, max_step_tokens)
    free, total = torch.cuda.mem_get_info(device)
    # Everything on the card but our caching allocator's spare: other tenants, the context, the
    # weights.
    used = total - free
    budget = int(total * config.gpu_memory_utilization)
    left = budget - used - activations
    gib = 1 << 30
    progress(
        f"GPU memory: {total / gib:.1f} GiB x {config.gpu_memory_utilization:g}"
        f" - {used / gib:.2f} in use (weights {weights / gib:.2f})"
        f" - {activations / gib:.2f} activations = {left / gib:.2f} GiB for the KV cache"
    )
    if left <= 0:
        raise OutOfMemory(
            f"--gpu-memory-utilization {config.gpu_memory_utilization:g} of {total / gib:.1f} GiB "
            f"leaves nothing for the KV cache: {used / gib:.2f} GiB are in use and a step needs "
            f"{activations / gib:.2f} GiB; raise it or use more GPUs"
        )
    return left


@torch.inference_mode()
def _peak_of_largest_step(
    config: EngineConfig,
    model: CausalLM,
    device: torch.device,
    dtype: torch.dtype,
    max_step_tokens: int,
) -> int:
    """Bytes that a full prefill step and a full sampling step take above the weights."""
    shape = (1, model.config.num_kv_heads, config.block_size, model.config.head_size)
    # One page for all: whatever the rows read there, the memory they take is the same.
    page = torch.zeros(shape, dtype=dtype, device=device)
    length = min(max_step_tokens, model.config.max_position)
    rows = -(-max_step_tokens // length)
    tokens = rows * length
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    batch = Batch(
        slots=torch.full((tokens,), -1, dtype=torch.int64, device=device),
        block_tables=torch.zeros(
            (rows, -(-length // config.block_size)), dtype=torch.int32, device=device
        ),
        query_starts=torch.arange(0, tokens + 1, length, dtype=torch.int32, device=device),
        context_lens=torch.full((rows,), length, dtype=torch.int32, device=device),
        max_query_len=length,
        max_context_len=length,
        kv_caches=[(page, page)] * model.config.num_layers,
    )
    positions = torch.arange(length, device=device).repeat(rows)
    hidden = model.forward(torch.zeros_like(positions), positions, batch)
    logits = model.logits(hidden[: config.max_num_seqs])
    # The sampler's largest transient: a copy and the softmax of all rows.
    del hidden, batch
    torch.softmax(logits, dim=-1)
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del logits
    torch.cuda.empty_cache()
    return int(peak)
