"""`octavo compile-kernels MODEL`: the folder that an image ships or a pod mounts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from octavo_server.config import BLOCK_SIZES, EngineConfig
from octavo_server.errors import StartupError

_GIB = 1 << 30


class KernelsFailed(StartupError):
    """A kernel did not compile."""

    reason = "KernelsFailed"


@click.command(
    name="compile-kernels",
    help="Compile the GPU kernels that MODEL (a folder with its config.json, or a .gguf file) "
    "launches into a folder, without a GPU. Give the flags that `octavo serve` gets.",
)
@click.argument("model")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Default: the cache that `octavo serve` uses.",
)
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto"
)
@click.option("--max-model-len", type=int)
@click.option("--max-num-seqs", type=click.IntRange(1), default=512, show_default=True)
@click.option("--max-num-batched-tokens", type=click.IntRange(1))
@click.option("--block-size", type=click.Choice(BLOCK_SIZES), default=16, show_default=True)
@click.option("--gpu-memory-utilization", type=float, default=0.9, show_default=True)
@click.option("--tensor-parallel-size", type=click.IntRange(1), default=1, show_default=True)
@click.option("--enforce-eager/--no-enforce-eager", default=False)
@click.option(
    "--capability",
    type=click.IntRange(80, 129),
    default=90,
    show_default=True,
    help="Of the GPU: 80 for an A100, 90 for an H100 or H200.",
)
@click.option(
    "--multiprocessors",
    type=click.IntRange(1),
    default=132,
    show_default=True,
    help="Of the GPU (nvidia-smi -q says it); launchers split work by it.",
)
@click.option("--gpu-memory-gib", type=click.IntRange(1), default=79, show_default=True)
@click.option("--processes", type=click.IntRange(0), default=0, help="0: one a core.")
def command(
    model: str,
    output: Path | None,
    capability: int,
    multiprocessors: int,
    gpu_memory_gib: int,
    processes: int,
    **flags: Any,
) -> None:
    """Raises `StartupError`s."""
    from octavo_server.rehearsal.kernels import Job, build, default_folder

    folder = output or default_folder()
    job = Job(
        config=EngineConfig(model=model, **flags),
        folder=str(folder),
        capability=capability,
        multiprocessors=multiprocessors,
        memory_bytes=gpu_memory_gib * _GIB,
        processes=processes,
    )
    started = time.monotonic()
    built = build(job, lambda text: click.echo(text, err=True))
    for line in built.failed:
        click.echo(line, err=True)
    if built.failed:
        raise KernelsFailed(f"{len(built.failed)} of {built.variants} kernels did not compile")
    click.echo(f"{built.variants} kernels in {folder}, {time.monotonic() - started:.1f} s")
