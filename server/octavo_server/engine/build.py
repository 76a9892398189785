"""From settings to an engine that has made its first step."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from octavo_server.config import EngineConfig
from octavo_server.distributed.group import SOLO, Group
from octavo_server.distributed.leading_runner import LeadingRunner
from octavo_server.distributed.orders import Load, Measure, Serve
from octavo_server.distributed.workers import STEP_SECONDS, OnFailure, Workers, local_config
from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.core import EngineCore
from octavo_server.engine.messages import Add, Ready
from octavo_server.engine.rank import Rank
from octavo_server.engine.runner import Runner
from octavo_server.engine.scheduler import Scheduler, SchedulerConfig
from octavo_server.engine.shortage import shortage_in
from octavo_server.errors import EngineDead, OutOfMemory
from octavo_server.memory_plan import CachePlan
from octavo_server.sampling_params import SamplingParams

MIXED_TOKENS = {"cuda": 512, "cpu": 256}
"""Prompt tokens a step while a stream decodes, whose next token waits for the whole step.

On an H100 512 tokens take 12 ms of llama-8b, whose decode step takes 7: inter-token latency stays
within three times, whatever the model's size, and products of 512 rows run at 95% of full speed.
"""

_COMPILE_SECONDS = 60.0
"""Longer than a cold compilation takes on two cores; what is missing then is compiled at launch."""


def build_engine(
    config: EngineConfig,
    progress: Callable[[str], None],
    on_failure: OnFailure | None = None,
) -> EngineCore:
    """Load the model, size the cache, run one token through. Raises `StartupError`s.

    Of several ranks this process becomes rank 0. `on_failure` hears, in a thread of its own, that
    the others can do no more; without it a step raises `EngineDead`, see `Workers`.
    """
    if config.tensor_parallel_size == 1:
        return _build(config, progress, None)
    # Before all that takes time here: they import torch meanwhile.
    workers = Workers(config.tensor_parallel_size, on_failure)
    try:
        return _build(config, progress, workers)
    except BaseException as error:
        found = workers.startup_error(error)
        workers.close(orderly=False)  # they may wait for this rank
        # What the error's traceback holds must not hold memory of a device.
        raise found from (error if found is not error else None)


def _build(
    config: EngineConfig, progress: Callable[[str], None], workers: Workers | None
) -> EngineCore:
    rank = Rank(config, progress)
    device = rank.device
    group: Group = SOLO
    if workers is not None:
        path, kind = str(rank.source.path), device.type
        workers.start()
        workers.order(Load(local_config(config, path, rank.dtype_name, kind)))
        progress(f"waiting for {rank.size - 1} more rank{'s' * (rank.size > 2)} on {kind}")
        group = workers.join(device)
    compiling = None
    if device.type == "cuda":
        # Late: imports triton. By module, so that a rehearsal can leave it out.
        from octavo_server.rehearsal import kernels

        current = torch.cuda.current_device()
        compiling = kernels.prepare(config, rank.source.path, current, progress)
    rank.load(group)
    if compiling is not None:
        compiling.wait(_COMPILE_SECONDS)
    cache_bytes = rank.stated_cache_bytes
    if cache_bytes is None:
        if workers is not None:
            workers.order(Measure())
        cache_bytes = rank.measure()
        if workers is not None:
            cache_bytes = workers.smallest_measured(cache_bytes)
    plan = rank.plan_cache(cache_bytes)
    ranks = "" if rank.size == 1 else f" on each of {rank.size} ranks"
    progress(
        f"KV cache: {plan.num_blocks} blocks of {plan.block_size} tokens, "
        f"{plan.cache_bytes / (1 << 30):.2f} GiB{ranks}; {plan.cache_tokens} tokens, "
        f"{plan.cache_tokens / plan.max_model_len:.1f} requests of {plan.max_model_len}"
    )
    runner: Runner | LeadingRunner
    if workers is None:
        runner = rank.runner(plan.num_blocks, plan.max_model_len)
    else:
        workers.order(Serve(plan.num_blocks, plan.max_model_len))
        own = rank.runner(plan.num_blocks, plan.max_model_len)
        runner = LeadingRunner(own, workers)
    core = _core(rank, plan, runner)
    _first_step(core, progress)
    _capture_graphs(runner, progress)
    if workers is not None:
        limit = config.collective_timeout
        workers.started(STEP_SECONDS[device.type] if limit is None else limit)
    return core


def _core(rank: Rank, plan: CachePlan, runner: Runner | LeadingRunner) -> EngineCore:
    config, device = rank.config, rank.device
    scheduler = Scheduler(
        SchedulerConfig(
            max_model_len=plan.max_model_len,
            max_num_seqs=rank.max_num_seqs,
            max_step_tokens=rank.step_tokens,
            max_mixed_tokens=MIXED_TOKENS[device.type],
            block_size=plan.block_size,
        ),
        BlockPool(plan.num_blocks, enable_caching=config.enable_prefix_caching),
    )
    return EngineCore(
        scheduler,
        runner,
        Ready(
            max_model_len=plan.max_model_len,
            vocab_size=rank.model_config.vocab_size,
            block_size=plan.block_size,
            num_blocks=plan.num_blocks,
            max_num_seqs=rank.max_num_seqs,
            dtype=rank.dtype_name,
            device=str(device),
        ),
        overlap=device.type == "cuda"
        if config.async_scheduling is None
        else config.async_scheduling,
    )


def _capture_graphs(runner: Runner | LeadingRunner, progress: Callable[[str], None]) -> None:
    if not runner.has_graphs:
        return
    started = time.monotonic()
    free, _ = torch.cuda.mem_get_info()
    try:
        captured = runner.capture()
    except RuntimeError as error:
        if shortage_in(error) is None:
            raise
        raise OutOfMemory(
            "no GPU memory is left for CUDA graphs, which all ranks need alike; lower "
            "--gpu-memory-utilization or --max-num-seqs, or pass --enforce-eager"
        ) from error
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
