"""`octavo plan MODEL`: what each GPU would hold, from config.json and the weights' headers."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import click

from octavo_server.api.sizes import Size
from octavo_server.config import BLOCK_SIZES, EngineConfig
from octavo_server.errors import CorruptModel
from octavo_server.gpu_plan import EngineSettings, GpuPlan, plan_gpu, smallest_that_fits
from octavo_server.memory_plan import readable_bytes, weight_count
from octavo_server.model_config import ModelConfig

_GIB = 1 << 30
# Written by training code beside weights; no weight of the model.
_NOT_COUNTED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


@click.command(
    name="plan",
    help="Say what MODEL (a folder, a .gguf file or a Hub id) needs of each GPU, and whether it "
    "fits. Reads its config and the headers of its weights, no weight; needs no GPU. Ends with 1 "
    "if the model does not fit.",
)
@click.argument("model")
@click.option("--tensor-parallel-size", type=click.IntRange(1), default=1, show_default=True)
@click.option("--gpu-memory-utilization", type=float, default=0.9, show_default=True)
@click.option(
    "--gpu-memory",
    type=Size(),
    default="79GiB",
    show_default=True,
    help="Of one GPU, as nvidia-smi says it: less than its name.",
)
@click.option("--max-model-len", type=int, help="Default: the model's own; -1: what fits.")
@click.option("--max-num-seqs", type=click.IntRange(1), default=512, show_default=True)
@click.option("--block-size", type=click.Choice(BLOCK_SIZES), default=16, show_default=True)
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto"
)
def command(
    model: str,
    tensor_parallel_size: int,
    gpu_memory_utilization: float,
    gpu_memory: int,
    dtype: str,
    **settings: Any,
) -> None:
    """Raises `StartupError`s."""
    # Late: the Hub's client takes a while to import.
    from octavo_server.loading.describe import read_model_config
    from octavo_server.loading.source import resolve_source

    # Of a Hub repository, its small files alone.
    asked = EngineConfig(model=model, load_format="dummy")
    source = resolve_source(asked, lambda text: click.echo(text, err=True))
    config = read_model_config(source)
    if dtype == "auto":
        # As an engine on a GPU chooses.
        dtype = "bfloat16" if config.dtype == "float32" else config.dtype
    engine = EngineSettings(
        dtype=dtype, gpu_bytes=gpu_memory, utilization=gpu_memory_utilization, **settings
    )
    plan = plan_gpu(config, engine, tensor_parallel_size)
    click.echo(f"{source.name}: {config.architecture}, {_weights(config, dtype)}")
    if source.kind == "folder" and (found := _stored(source.path)):
        click.echo(_compared(found, config))
    click.echo(_table(plan, engine))
    click.echo(_verdict(plan, smallest_that_fits(config, engine)))
    sys.exit(0 if plan.cache is not None else 1)


def _weights(config: ModelConfig, dtype: str) -> str:
    return f"{weight_count(config) / 1e9:.3g} billion weights in {dtype}"


def _stored(folder: Path) -> list[tuple[str, int, int]]:
    """(name, elements, bytes) of each tensor of the folder's safetensors; none: no weights there.

    Raises CorruptModel where a header cannot be read.
    """
    from octavo_server.loading.safetensors import read_header, weight_files

    if not any(folder.glob("*.safetensors")):
        return []
    found = []
    for path in weight_files(folder):
        for name, entry in read_header(path).items():
            try:
                first, last = entry["data_offsets"]
                found.append((name, math.prod(entry["shape"]), last - first))
            except (KeyError, TypeError, ValueError) as error:
                raise CorruptModel(f"the header of {path} is damaged ({error!r})") from None
    return found


def _compared(found: list[tuple[str, int, int]], config: ModelConfig) -> str:
    stored = readable_bytes(sum(size for _, _, size in found))
    kept = [it for it in found if not it[0].endswith(_NOT_COUNTED)]
    if config.tie_word_embeddings:
        kept = [it for it in kept if it[0] != "lm_head.weight"]
    there, wanted = sum(elements for _, elements, _ in kept), weight_count(config)
    if there == wanted:
        return f"stored: {stored}, all weights that the config describes"
    return f"stored: {stored}, {there:,} weights where the config describes {wanted:,}"


def _table(plan: GpuPlan, engine: EngineSettings) -> str:
    of = f"{readable_bytes(engine.gpu_bytes)} x {engine.utilization:g}"
    terms = [
        (f"budget ({of})", plan.budget),
        ("weights", -plan.weights),
        ("libraries, estimated", -plan.libraries),
        ("activations of a step", -plan.activations),
        ("buffers", -plan.buffers),
        ("CUDA graphs", -plan.graphs),
        ("left for the KV cache", plan.left),
    ]
    gpus = "one GPU" if plan.size == 1 else f"each of {plan.size} GPUs"
    lines = [f"{gpus}, GiB:"]
    lines += [f"  {name:<34}{size / _GIB:>9.2f}" for name, size in terms]
    return "\n".join(lines)


def _verdict(plan: GpuPlan, smallest: int | None) -> str:
    if plan.cache is None:
        verdict = f"does not fit: {plan.refusal}"
    else:
        cache = plan.cache
        verdict = (
            f"fits: {cache.num_blocks:,} blocks of {cache.block_size} tokens, "
            f"{cache.cache_tokens:,} tokens, "
            f"{cache.cache_tokens / cache.max_model_len:.1f} requests of {cache.max_model_len:,}"
        )
    needed = (
        "no --tensor-parallel-size is enough"
        if smallest is None
        else f"smallest --tensor-parallel-size that fits: {smallest}"
    )
    return f"{verdict}\n{needed}"
