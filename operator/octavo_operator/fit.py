"""Does the model fit its GPUs? The arithmetic of `octavo plan`, before a GPU is used. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from octavo_operator import conditions, names
from octavo_operator.conditions import FITS_ACCELERATOR, Condition
from octavo_operator.spec import InferenceService, camel_case
from octavo_server.distributed.shard import sizes_that_work
from octavo_server.errors import StartupError
from octavo_server.gpu_plan import EngineSettings, GpuPlan, plan_gpu, smallest_that_fits
from octavo_server.memory_plan import plan_blocks, readable_bytes
from octavo_server.model_config import ModelConfig, parse_config

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Unread:
    """Why a model's config.json is not known, in a reason and a sentence."""

    reason: str
    message: str


def read_stated(config: Mapping[str, Any]) -> ModelConfig | Unread:
    """spec.model.config."""
    try:
        return parse_config(config)
    except StartupError as error:
        return Unread(conditions.MODEL_NOT_READABLE, f"spec.model.config: {error}")


def decide_fit(
    service: InferenceService,
    model: ModelConfig | Unread | None,
    gpu_mebibytes: tuple[int, ...],
) -> Condition:
    """`gpu_mebibytes`: of a GPU, of each kind of node that the pods may come to, smallest first;
    () if none says.

    model None: it is being read. False for what is known to be wrong, Unknown where a fact is
    missing.
    """
    if not service.wants_gpu:
        return _condition("True", conditions.NO_ACCELERATOR, "the model runs on CPUs")
    if model is None:
        return _condition("Unknown", conditions.BEING_READ, "the model's config.json is being read")
    if isinstance(model, Unread):
        return _condition("Unknown", model.reason, model.message)
    size = service.spec.engine.tensor_parallel_size
    if size not in (works := sizes_that_work(model)):
        sizes = ", ".join(map(str, works))
        return _condition(
            "False",
            conditions.INVALID_TENSOR_PARALLEL_SIZE,
            f"spec.engine.tensorParallelSize {size} does not divide the model's "
            f"{model.num_heads} attention heads, {model.num_kv_heads} key/value heads and "
            f"intermediate size of {model.intermediate_size}; these work: {sizes}",
        )
    others = [name for name in service.spec.resources.gpu_names if name != service.gpu_resource]
    if others:
        return _condition(
            "Unknown",
            conditions.NO_GPU_MEMORY_LABELS,
            f"no label says how much memory {others[0]} has",
        )
    if not gpu_mebibytes:
        return _condition(
            "Unknown",
            conditions.NO_GPU_MEMORY_LABELS,
            "no node that the pods may come to has the label "
            f"{names.memory_label(service.gpu_resource)} (GPU feature discovery sets it), or the "
            "operator may not list nodes",
        )
    *smaller, largest = (
        (mebibytes, _on(service, model, mebibytes * _MIB)) for mebibytes in gpu_mebibytes
    )
    verdict = largest[1]
    if verdict.status == "True" and (
        less := [each for each, one in smaller if one.status != "True"]
    ):
        sizes = ", ".join(readable_bytes(each * _MIB) for each in less)
        return replace(
            verdict,
            message=f"{verdict.message}; not on nodes whose GPUs have {sizes}, where pods may "
            "land: podTemplate.spec.nodeSelector keeps them away",
        )
    return verdict


def _on(service: InferenceService, model: ModelConfig, gpu_bytes: int) -> Condition:
    """On GPUs of one kind."""
    try:
        return _by_arithmetic(service, model, gpu_bytes)
    except StartupError as error:
        return _condition("False", conditions.DOES_NOT_FIT, _in_fields(str(error)))


def _by_arithmetic(service: InferenceService, model: ModelConfig, gpu_bytes: int) -> Condition:
    engine = service.spec.engine
    size, stated = engine.tensor_parallel_size, engine.kv_cache_memory_bytes
    settings = EngineSettings(
        dtype=_dtype(engine.dtype, model),
        gpu_bytes=gpu_bytes,
        # A stated cache may use what it likes.
        utilization=engine.gpu_memory_utilization if stated is None else 1.0,
        max_model_len=engine.max_model_len,
        **{
            key: value
            for key, value in (
                ("block_size", engine.block_size),
                ("max_num_seqs", engine.max_num_seqs),
                ("step_tokens", engine.max_num_batched_tokens),
            )
            if value is not None
        },
    )
    plan = plan_gpu(model, settings, size)
    each = "the GPU" if size == 1 else f"each of {size} GPUs"
    what = (
        f"{each} ({readable_bytes(gpu_bytes)} x {settings.utilization:g}) holds "
        f"{readable_bytes(plan.weights)} of weights and "
        f"{readable_bytes(plan.budget - plan.weights - plan.left)} for steps"
    )
    if stated is not None and plan.left < stated:
        return _condition(
            "False",
            conditions.DOES_NOT_FIT,
            f"{what}; {readable_bytes(max(0, plan.left))} are left, kvCacheMemory asks for "
            f"{readable_bytes(stated)}",
        )
    if stated is not None:
        cache = plan_blocks(
            model,
            block_size=settings.block_size,
            dtype=settings.dtype,
            cache_bytes=stated,
            max_model_len=engine.max_model_len,
            tensor_parallel_size=size,
            remedy="raise spec.engine.kvCacheMemory",
        )
        return _condition(
            "True",
            conditions.FITS,
            f"{what}; kvCacheMemory is some {cache.cache_tokens // 1000:,} thousand tokens",
        )
    if plan.cache is None:
        return _condition(
            "False",
            conditions.DOES_NOT_FIT,
            f"{_in_fields(plan.refusal)}; {_advice(model, settings)}",
        )
    return _condition("True", conditions.FITS, f"{what}; {_room(plan)}")


def _room(plan: GpuPlan) -> str:
    assert plan.cache is not None
    tokens = plan.cache.cache_tokens
    return f"{readable_bytes(plan.left)} are left, some {tokens // 1000:,} thousand tokens"


def _advice(model: ModelConfig, settings: EngineSettings) -> str:
    smallest = smallest_that_fits(model, settings)
    if smallest is None:
        return "no tensorParallelSize is enough on this GPU"
    return f"spec.engine.tensorParallelSize {smallest} is the smallest that fits"


def _in_fields(text: str) -> str:
    """Flags of the engine as the manifest calls them."""
    return re.sub(
        r"--([a-z][-a-z]*[a-z])",
        lambda flag: "spec.engine." + camel_case(flag[1].replace("-", "_")),
        text,
    )


def _dtype(asked: str, model: ModelConfig) -> str:
    """As an engine on a GPU chooses."""
    if asked != "auto":
        return asked
    return "bfloat16" if model.dtype == "float32" else model.dtype


def _condition(status: conditions.Status, reason: str, message: str) -> Condition:
    return Condition(FITS_ACCELERATOR, status, reason, message)
