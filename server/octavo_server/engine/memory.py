"""How many bytes the KV cache gets: a stated amount on CPU, what `gpu_memory_utilization` leaves on
a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from octavo_kernels.ops import AttentionBatch
from octavo_server.config import EngineConfig
from octavo_server.distributed.group import Group
from octavo_server.distributed.vocabulary import gather_logits
from octavo_server.engine.arena import Arena
from octavo_server.engine.graphs import SHARING_ROWS, row_buckets, token_buckets
from octavo_server.engine.sampler import EXTRA_ROWS, Judgement
from octavo_server.engine.shortage import shortage_in
from octavo_server.errors import OutOfMemory
from octavo_server.gpu_plan import FRAGMENTS, buffer_bytes
from octavo_server.models.causal_lm import Batch, CausalLM

CPU_CACHE_BYTES = 1 << 30
"""Default on CPU, where the machine's memory belongs to others too."""

GRAPH_BYTES = 512 << 10
"""Of the driver, per captured graph: 28 MiB for 50 of some 230 launches (H100)."""

SPARE_BYTES = 256 << 20
"""Left free where other tenants, not the utilization, set the limit: fragments, late modules."""


def foreign_bytes(device: torch.device) -> int:
    """Bytes in use on a GPU before this engine takes any: its context's, and other tenants'.

    Raises `OutOfMemory` where those leave nothing even for the context, half a GiB.
    """
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.zeros(1, device=device)  # makes the context
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        if shortage_in(error) is None:
            raise
        raise OutOfMemory(
            f"{device} has too little free memory to be used at all (CUDA's own context takes "
            "half a GiB): others hold the rest; free the GPU or use another"
        ) from error
    return total - free


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


def check_weights_fit(needed: int, device: torch.device, foreign: int) -> None:
    """Raise `OutOfMemory` if a GPU has fewer than `needed` bytes free; `foreign` as from above.

    Said before they are read: minutes later it would be known too, but not who holds the rest.
    """
    free, total = torch.cuda.mem_get_info(device)
    if needed > free:
        gib = 1 << 30
        raise OutOfMemory(
            f"the weights take {needed / gib:.2f} GiB, but {free / gib:.2f} of the GPU's "
            f"{total / gib:.1f} are free: {foreign / gib:.2f} were in use before the engine "
            "started; free the GPU, use more GPUs or a smaller model"
        )


@dataclass(frozen=True, slots=True)
class StepBounds:
    """The largest step: what a runner must have memory for."""

    max_step_tokens: int
    max_num_seqs: int
    max_model_len: int


def measure_cache_bytes(
    config: EngineConfig,
    model: CausalLM,
    bounds: StepBounds,
    *,
    group: Group,
    device: torch.device,
    dtype: torch.dtype,
    arena: Arena,
    use_graphs: bool,
    foreign: int,
    progress: Callable[[str], None],
) -> int:
    """Bytes of a GPU that are left for keys and values: runs the largest steps once to see, and
    reserves what they took in the arena.

    `gpu_memory_utilization` is the share of the card that this engine may take beside its CUDA
    context, as in vLLM; `foreign` bytes were in use when there was nothing but the context. Raises
    `OutOfMemory` when nothing is left.
    """
    weights = torch.cuda.memory_allocated(device)
    arena.catch_up()
    try:
        with torch.inference_mode(), arena.stream():
            trial = _Trial(config, model, bounds, group, device, dtype)
            prefill = _peak(device, lambda: trial.prefill(bounds.max_step_tokens))
            decode = _peak(device, trial.decode)
            sampler = decode + _peak(device, trial.draw_extra)
    except RuntimeError as error:
        if (shortage := shortage_in(error)) is None:
            raise
        raise OutOfMemory(_step_does_not_fit(device, weights, foreign, shortage)) from error
    activations = int(max(prefill, decode, sampler) * FRAGMENTS)
    graphs = 0
    if use_graphs:
        rows = row_buckets(bounds.max_num_seqs)
        tokens = token_buckets(bounds.max_step_tokens, model.config.layer_weights)
        # Rows: layers, and by the kinds of a draw whole (some with shared pages and without) and
        # head; tokens: for few sequences and for many.
        kinds = 1 if group.size == 1 else 2
        twice = sum(count >= SHARING_ROWS for count in rows)
        count = (1 + 2 * kinds) * len(rows) + kinds * twice + 2 * len(tokens)
        graphs = count * GRAPH_BYTES
    torch.cuda.empty_cache()
    buffers = buffer_bytes(
        model.config,
        rows=bounds.max_num_seqs,
        step_tokens=bounds.max_step_tokens,
        max_model_len=bounds.max_model_len,
        block_size=config.block_size,
    )
    free, total = torch.cuda.mem_get_info(device)
    # Weights, and what libraries and loaded kernels took since the context was made.
    held = total - free - foreign
    budget = int(total * config.gpu_memory_utilization)
    left = budget - held - activations - buffers - graphs
    room = free - activations - buffers - graphs - SPARE_BYTES
    gib = 1 << 30
    terms = (
        f"{total / gib:.1f} GiB x {config.gpu_memory_utilization:g} - weights {weights / gib:.2f}"
        f" - libraries {(held - weights) / gib:.2f} - activations {activations / gib:.2f}"
        f" - buffers {buffers / gib:.2f} - graphs {graphs / gib:.2f}"
        f" = {left / gib:.2f} GiB for the KV cache"
    )
    if room < left:
        terms += (
            f", of which {max(0, room) / gib:.2f} GiB are there: {foreign / gib:.2f} GiB of this "
            "GPU were in use before the engine started"
        )
        left = room
    progress(f"GPU memory: {terms}")
    if left <= 0:
        raise OutOfMemory(
            f"no GPU memory is left for the KV cache: {terms}; raise --gpu-memory-utilization, "
            "free the GPU, use more GPUs, or lower --max-num-seqs and --max-num-batched-tokens"
        )
    arena.reserve(activations)
    return left


def _step_does_not_fit(device: torch.device, weights: int, foreign: int, shortage: str) -> str:
    gib = 1 << 30
    total = torch.cuda.mem_get_info(device)[1]
    return (
        f"the largest step does not fit into the GPU's memory beside the weights: {shortage}; of "
        f"{total / gib:.1f} GiB the weights take {weights / gib:.2f}, and {foreign / gib:.2f} were "
        "in use before the engine started; free the GPU, use more GPUs, or lower "
        "--max-num-seqs and --max-num-batched-tokens"
    )


class _Trial:
    """The largest steps, run on one page for all: what rows read there is the same memory."""

    def __init__(
        self,
        config: EngineConfig,
        model: CausalLM,
        bounds: StepBounds,
        group: Group,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (1, model.config.num_kv_heads, config.block_size, model.config.head_size)
        page = torch.zeros(shape, dtype=dtype, device=device)
        self._model, self._bounds, self._group, self._device = model, bounds, group, device
        self._caches = [(page, page)] * model.config.num_layers
        self._block_size = config.block_size

    def prefill(self, tokens: int) -> None:
        """A step of so many tokens, in the longest prompts that fit."""
        self._run(min(tokens, self._bounds.max_model_len), tokens)

    def decode(self) -> None:
        """A step of one token of every row, its logits included: all ranks' on each."""
        logits = self._model.logits(self._run(1, self._bounds.max_num_seqs))
        gather_logits(self._group, logits, self._model.config.vocab_size)

    def draw_extra(self) -> None:
        """What rows that ask for log probabilities add to a full step: copies in float32."""
        rows = min(self._bounds.max_num_seqs, EXTRA_ROWS)
        adjusted = torch.zeros((rows, self._model.config.vocab_size), device=self._device)
        ids = torch.zeros(rows, dtype=torch.int64, device=self._device)
        Judgement(adjusted.clone(), ids, [1] * rows, list(range(rows)))

    def _run(self, length: int, tokens: int) -> torch.Tensor:
        rows = tokens // length
        tokens = rows * length
        max_context = self._bounds.max_model_len if length == 1 else length

        def int32s(values: torch.Tensor) -> torch.Tensor:
            return values.to(torch.int32)

        starts = torch.arange(0, tokens + 1, length, device=self._device)
        attention = AttentionBatch(
            block_tables=torch.zeros(
                (1, -(-max_context // self._block_size)), dtype=torch.int32, device=self._device
            ),
            rows=torch.zeros(rows, dtype=torch.int32, device=self._device),
            query_starts=int32s(starts),
            context_lens=torch.full((rows,), length, dtype=torch.int32, device=self._device),
            num_decodes=rows if length == 1 else 0,
            max_query_len=length,
            max_context_len=max_context,
        )
        positions = torch.arange(length, device=self._device).repeat(rows)
        batch = Batch(
            token_ids=torch.zeros_like(positions),
            positions=positions,
            slots=torch.full((tokens,), -1, dtype=torch.int64, device=self._device),
            attention=attention,
            kv_caches=self._caches,
        )
        return self._model.forward(batch)


def _peak(device: torch.device, run: Callable[[], None]) -> int:
    """Bytes that `run` takes at most above what it leaves behind (a library's workspace)."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    torch.cuda.empty_cache()
    return int(peak)
