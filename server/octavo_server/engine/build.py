"""From settings to an engine that has made its first step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from octavo_kernels.ops import select_ops
from octavo_server.config import EngineConfig
from octavo_server.engine.arena import Arena
from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.core import EngineCore
from octavo_server.engine.memory import (
    StepBounds,
    check_host_memory,
    check_weights_fit,
    foreign_bytes,
    measure_cache_bytes,
    stated_cache_bytes,
)
from octavo_server.engine.messages import Add, Ready
from octavo_server.engine.runner import Runner
from octavo_server.engine.scheduler import Scheduler, SchedulerConfig
from octavo_server.errors import EngineDead, InvalidSettings, OutOfMemory
from octavo_server.loading.describe import read_model_config
from octavo_server.loading.load import load_model
from octavo_server.loading.source import resolve_source
from octavo_server.memory_plan import CachePlan, plan_blocks, weight_bytes
from octavo_server.sampling_params import SamplingParams

STEP_TOKENS = {"cuda": 8192, "cpu": 2048}
"""Token budget while nobody decodes: large steps fill the device."""

MIXED_TOKENS = {"cuda": 512, "cpu": 256}
"""Prompt tokens a step while a stream decodes, whose next token waits for the whole step.

On an H100 512 tokens take 12 ms of llama-8b, whose decode step takes 7: inter-token latency stays
within three times, whatever the model's size, and products of 512 rows run at 95% of full speed.
"""


_PLENTY = 1 << 60
"""Stands for a cache whose size is not known yet: checks the context against the model alone."""

_COMPILE_SECONDS = 60.0
"""Longer than a cold compilation takes on two cores; what is missing then is compiled at launch."""


def build_engine(config: EngineConfig, progress: Callable[[str], None]) -> EngineCore:
    """Load the model, size the cache, run one token through. Raises `StartupError`s."""
    device = choose_device(config)
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cpus())
    foreign = foreign_bytes(device) if device.type == "cuda" else 0
    source = resolve_source(config, progress)
    model_config = read_model_config(source)
    dtype_name = choose_dtype(config, model_config.dtype, device)
    dtype: torch.dtype = getattr(torch, dtype_name)
    ops = select_ops(device.type)
    step_tokens = config.max_num_batched_tokens or STEP_TOKENS[device.type]
    max_num_seqs = min(config.max_num_seqs, step_tokens)
    use_graphs = device.type == "cuda" and not config.enforce_eager

    def plan_cache(cache_bytes: int) -> CachePlan:
        return plan_blocks(
            model_config,
            block_size=config.block_size,
            dtype=dtype_name,
            cache_bytes=cache_bytes,
            max_model_len=config.max_model_len,
            num_blocks=config.num_gpu_blocks_override,
        )

    # Before the weights: what cannot work is refused in a second, not after minutes of loading.
    stated = stated_cache_bytes(config, device)
    early = plan_cache(_PLENTY if stated is None else stated)
    if device.type == "cpu":
        check_host_memory(early.cache_bytes)
    else:
        check_weights_fit(weight_bytes(model_config, dtype_name), device, foreign)
    compiling = None
    if device.type == "cuda":
        # Late: imports triton. By module, so that a rehearsal can leave it out.
        from octavo_server.rehearsal import kernels

        compiling = kernels.prepare(config, source.path, torch.cuda.current_device(), progress)
    model = load_model(
        source, model_config, config, ops=ops, device=device, dtype=dtype, progress=progress
    )
    if compiling is not None:
        compiling.wait(_COMPILE_SECONDS)
    arena = Arena(device) if device.type == "cuda" else None
    if stated is None:
        assert arena is not None, "on a CPU the cache's size is stated"
        left = measure_cache_bytes(
            config,
            model,
            StepBounds(step_tokens, max_num_seqs, early.max_model_len),
            device=device,
            dtype=dtype,
            arena=arena,
            use_graphs=use_graphs,
            foreign=foreign,
            progress=progress,
        )
        plan = plan_cache(left)
    else:
        plan = early
    progress(
        f"KV cache: {plan.num_blocks} blocks of {plan.block_size} tokens, "
        f"{plan.cache_bytes / (1 << 30):.2f} GiB; {plan.cache_tokens} tokens, "
        f"{plan.cache_tokens / plan.max_model_len:.1f} requests of {plan.max_model_len}"
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what loading used; the cache's tensors fit into none of it
    try:
        runner = Runner(
            model,
            ops,
            device=device,
            dtype=dtype,
            num_blocks=plan.num_blocks,
            block_size=plan.block_size,
            max_num_seqs=max_num_seqs,
            max_model_len=plan.max_model_len,
            max_step_tokens=step_tokens,
            arena=arena,
            use_graphs=use_graphs,
        )
    except (MemoryError, RuntimeError) as error:  # torch's out-of-memory errors are RuntimeErrors
        raise OutOfMemory(
            f"{device} could not give the KV cache its {plan.cache_bytes / (1 << 30):.2f} GiB; "
            "pass a smaller --kv-cache-memory-bytes, --gpu-memory-utilization or --max-model-len"
        ) from error
    scheduler = Scheduler(
        SchedulerConfig(
            max_model_len=plan.max_model_len,
            max_num_seqs=max_num_seqs,
            max_step_tokens=step_tokens,
            max_mixed_tokens=MIXED_TOKENS[device.type],
            block_size=plan.block_size,
        ),
        BlockPool(plan.num_blocks, enable_caching=config.enable_prefix_caching),
    )
    core = EngineCore(
        scheduler,
        runner,
        Ready(
            max_model_len=plan.max_model_len,
            vocab_size=model_config.vocab_size,
            block_size=plan.block_size,
            num_blocks=plan.num_blocks,
            max_num_seqs=max_num_seqs,
            dtype=dtype_name,
            device=str(device),
        ),
        overlap=device.type == "cuda"
        if config.async_scheduling is None
        else config.async_scheduling,
    )
    _first_step(core, progress)
    _capture_graphs(runner, progress)
    return core


def choose_device(config: EngineConfig) -> torch.device:
    if config.tensor_parallel_size != 1:
        raise InvalidSettings(
            f"--tensor-parallel-size {config.tensor_parallel_size}: this version runs a model on "
            "one device only; use 1"
        )
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InvalidSettings("--device cuda, but this machine has no usable GPU; use --device cpu")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


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


def _capture_graphs(runner: Runner, progress: Callable[[str], None]) -> None:
    if not runner.has_graphs:
        return
    started = time.monotonic()
    free, _ = torch.cuda.mem_get_info()
    captured = runner.capture()
    taken = free - torch.cuda.mem_get_info()[0]
    progress(
        f"{captured} CUDA graphs captured in {time.monotonic() - started:.1f} s, "
        f"{taken / (1 << 30):.2f} GiB"
    )


def _first_step(core: EngineCore, progress: Callable[[str], None]) -> None:
    """Prove that the engine computes before anybody is told that it is ready; also compiles
    kernels.
    """
    started = time.monotonic()
    request = Add("first-step", [0], SamplingParams(max_tokens=2, temperature=0.0), started)
    core.add(request)
    while core.has_work:
        report = core.step()
        if report is not None and any(output.error for output in report.outputs):
            raise EngineDead(f"the first step failed: {report.outputs[0].error}")
    core.scheduler.take_stats()
    progress(f"first step after {time.monotonic() - started:.1f} s")
