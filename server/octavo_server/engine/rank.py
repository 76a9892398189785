"""One rank on its way from settings to a runner: what all ranks of an engine do alike."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from octavo_kernels.ops import select_ops
from octavo_server.config import EngineConfig
from octavo_server.distributed.group import SOLO, Group
from octavo_server.distributed.shard import shard
from octavo_server.engine.arena import Arena
from octavo_server.engine.memory import (
    StepBounds,
    check_host_memory,
    check_weights_fit,
    foreign_bytes,
    measure_cache_bytes,
    stated_cache_bytes,
)
from octavo_server.engine.runner import Runner
from octavo_server.errors import InvalidSettings, OutOfMemory
from octavo_server.loading.describe import read_model_config
from octavo_server.loading.load import load_model
from octavo_server.loading.source import resolve_source
from octavo_server.memory_plan import CachePlan, plan_blocks, weight_bytes
from octavo_server.models.causal_lm import CausalLM

STEP_TOKENS = {"cuda": 8192, "cpu": 2048}
"""Token budget while nobody decodes: large steps fill the device."""

_PLENTY = 1 << 60
"""Stands for a cache whose size is not known yet: checks the context against the model alone."""


class Rank:
    """Its methods are called in the order in which they stand here, and raise `StartupError`s.

    Everything is decided by the settings and the model alone, so that ranks decide alike; what they
    measure is theirs, and what follows of it rank 0's to say.
    """

    def __init__(
        self, config: EngineConfig, progress: Callable[[str], None], rank: int = 0
    ) -> None:
        """Before the weights: what cannot work is refused in a second, not after minutes of
        loading.
        """
        self.config, self.rank, self.size = config, rank, config.tensor_parallel_size
        self._progress = progress
        self.device = choose_device(config, rank)
        on_gpu = self.device.type == "cuda"
        if on_gpu and self.size > 1:
            torch.cuda.set_device(self.device)
        if not on_gpu and (self.size > 1 or "OMP_NUM_THREADS" not in os.environ):
            torch.set_num_threads(max(1, usable_cpus() // self.size))
        self._foreign = foreign_bytes(self.device) if on_gpu else 0
        self.source = resolve_source(config, progress)
        self.model_config = read_model_config(self.source)
        shard(self.model_config, rank, self.size)
        self.dtype_name = choose_dtype(config, self.model_config.dtype, self.device)
        self._dtype: torch.dtype = getattr(torch, self.dtype_name)
        progress(describe_device(config, self.device, self.dtype_name))
        self._ops = select_ops(self.device.type)
        self.step_tokens = config.max_num_batched_tokens or STEP_TOKENS[self.device.type]
        self.max_num_seqs = min(config.max_num_seqs, self.step_tokens)
        self._use_graphs = on_gpu and not config.enforce_eager
        self.stated_cache_bytes = stated_cache_bytes(config, self.device)
        stated = self.stated_cache_bytes
        self._early = self.plan_cache(_PLENTY if stated is None else stated)
        if on_gpu:
            needed = weight_bytes(self.model_config, self.dtype_name, self.size)
            check_weights_fit(needed, self.device, self._foreign)
        else:
            check_host_memory(self._early.cache_bytes * self.size)

    def plan_cache(self, cache_bytes: int) -> CachePlan:
        return plan_blocks(
            self.model_config,
            block_size=self.config.block_size,
            dtype=self.dtype_name,
            cache_bytes=cache_bytes,
            max_model_len=self.config.max_model_len,
            tensor_parallel_size=self.size,
            num_blocks=self.config.num_gpu_blocks_override,
        )

    def load(self, group: Group = SOLO) -> None:
        self._group = group
        self._model: CausalLM = load_model(
            self.source,
            self.model_config,
            self.config,
            ops=self._ops,
            device=self.device,
            dtype=self._dtype,
            progress=self._progress,
            group=group,
            foreign=self._foreign,
        )
        self._arena = Arena(self.device) if self.device.type == "cuda" else None

    def measure(self) -> int:
        """Bytes that this rank's GPU has left for keys and values. Launches; kernels should be
        compiled by now.
        """
        assert self._arena is not None, "on a CPU the cache's size is stated"
        return measure_cache_bytes(
            self.config,
            self._model,
            StepBounds(self.step_tokens, self.max_num_seqs, self._early.max_model_len),
            group=self._group,
            device=self.device,
            dtype=self._dtype,
            arena=self._arena,
            use_graphs=self._use_graphs,
            foreign=self._foreign,
            progress=self._progress,
        )

    def runner(self, num_blocks: int, max_model_len: int) -> Runner:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what loading used; the cache's tensors fit into none of it
        try:
            return Runner(
                self._model,
                self._ops,
                group=self._group,
                device=self.device,
                dtype=self._dtype,
                num_blocks=num_blocks,
                block_size=self.config.block_size,
                max_num_seqs=self.max_num_seqs,
                max_model_len=max_model_len,
                max_step_tokens=self.step_tokens,
                arena=self._arena,
                use_graphs=self._use_graphs,
            )
        except (MemoryError, RuntimeError) as error:  # torch's out-of-memory are RuntimeErrors
            size = num_blocks * self._early.bytes_per_block
            raise OutOfMemory(
                f"{self.device} could not give the KV cache its {size / (1 << 30):.2f} GiB; pass a "
                "smaller --kv-cache-memory-bytes, --gpu-memory-utilization or --max-model-len"
            ) from error


def choose_device(config: EngineConfig, rank: int = 0) -> torch.device:
    """The rank's: a GPU of its own, or the CPU that all share."""
    size = config.tensor_parallel_size
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InvalidSettings("--device cuda, but this machine has no usable GPU; use --device cpu")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if size == 1:
        return torch.device("cuda")
    if (there := torch.cuda.device_count()) < size:
        gpus = "one usable GPU" if there == 1 else f"{there} usable GPUs"
        raise InvalidSettings(
            f"--tensor-parallel-size {size} takes as many GPUs, but this machine has {gpus}"
        )
    return torch.device("cuda", rank)


def describe_device(config: EngineConfig, device: torch.device, dtype: str) -> str:
    """One line of a start: what computes, in which dtype, and over how many ranks."""
    size = config.tensor_parallel_size
    if device.type == "cuda":
        what = f"{size} x {torch.cuda.get_device_name(device)}"
    else:
        threads = torch.get_num_threads()
        asked = "using" if config.device == "cpu" else "no GPU: using"
        what = f"{asked} the CPU, {threads} thread{'s' * (threads > 1)}"
        what += f" in each of {size} processes" if size > 1 else ""
    return f"{what}, {dtype}, tensor parallel size {size}"


def choose_dtype(config: EngineConfig, checkpoint: str, device: torch.device) -> str:
    """The checkpoint's dtype where the device computes in it natively, else one that it does."""
    if config.dtype != "auto":
        return config.dtype
    if device.type == "cuda":
        # Weights of 4 bytes halve the speed of decoding for nothing that sampling would notice.
        return "bfloat16" if checkpoint == "float32" else checkpoint
    if checkpoint != "float32" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "bfloat16"
    return "float32"


def usable_cpus() -> int:
    """Cores this process may use: its affinity, cut by the container's CPU quota (cgroup v2).

    A pod limited to 4 CPUs of a 128-core node would otherwise start 128 threads that throttle each
    other.
    """
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cpus
    if quota == "max":
        return cpus
    return max(1, min(cpus, int(quota) // int(period)))
