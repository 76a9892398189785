"""Fill a model's weights from its files, every core reading, with progress."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing

import torch

from octavo_kernels.ops import Ops
from octavo_server.config import EngineConfig
from octavo_server.distributed.group import SOLO, Group
from octavo_server.errors import CorruptModel, InvalidSettings, OutOfMemory
from octavo_server.loading.checkpoint import StoredTensor
from octavo_server.loading.damage import damage_in
from octavo_server.loading.dummy import fill_dummy
from octavo_server.loading.gguf import stored_gguf_tensors
from octavo_server.loading.gguf_file import read_gguf
from octavo_server.loading.parallel_read import Reader, Region, interleaved, regions
from octavo_server.loading.safetensors import stored_tensors
from octavo_server.loading.source import ModelSource
from octavo_server.memory_plan import readable_bytes, weight_bytes
from octavo_server.model_config import ModelConfig
from octavo_server.models.causal_lm import CausalLM
from octavo_server.models.registry import build_model
from octavo_server.models.slot import Slot

_PROGRESS_SECONDS = 2.0
# One copies 2 to 3 GB/s out of the page cache: with as many, the bus to the GPU is the limit.
_MAX_READERS = 16
# No machine has as much, and torch's sizes overflow beyond.
_ADDRESSABLE_BYTES = 2**56


def load_model(
    source: ModelSource,
    model_config: ModelConfig,
    engine_config: EngineConfig,
    *,
    ops: Ops,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[str], None],
    group: Group = SOLO,
    foreign: int = 0,
) -> CausalLM:
    """Build this rank's part of the model on `device` and fill it; ready for `forward`.

    Raises CorruptModel (missing, unexpected or mis-shaped tensors), UnsupportedModel, OutOfMemory,
    InvalidSettings where the group's size does not divide the model. Of the device's memory
    `foreign` bytes were in use before.
    """
    needed = weight_bytes(model_config, str(dtype).removeprefix("torch."), group.size)
    if needed > _ADDRESSABLE_BYTES:
        raise _out_of_memory(source, needed, dtype, device, foreign)
    max_len = engine_config.max_model_len
    try:
        with damage_in(f"the config of {source.name}"):
            model = build_model(
                model_config,
                ops,
                dtype,
                device,
                max_len=max_len if max_len is not None and max_len > 0 else None,
                group=group,
            )
        fill(model, source, model_config, engine_config, progress)
        started = time.monotonic()
        model.prepare()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(source, needed, dtype, device, foreign) from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise _out_of_memory(source, needed, dtype, device, foreign) from error
    progress(f"weights prepared in {time.monotonic() - started:.1f} s")
    return model


def fill(
    model: CausalLM,
    source: ModelSource,
    model_config: ModelConfig,
    config: EngineConfig,
    progress: Callable[[str], None],
) -> None:
    """Weights from `source`, or random ones for `--load-format dummy`.

    model_config is the whole model's.
    """
    if config.load_format == "dummy":
        started = time.monotonic()
        fill_dummy(model, config.seed)
        progress(f"dummy weights made in {time.monotonic() - started:.1f} s")
        return
    if config.load_format == "gguf" and source.kind != "gguf":
        raise InvalidSettings(f"--load-format gguf, but {source.name} is not a .gguf file")
    if config.load_format == "safetensors" and source.kind != "folder":
        raise InvalidSettings(f"--load-format safetensors, but {source.name} is a .gguf file")
    tensors = (
        stored_gguf_tensors(read_gguf(source.path), model_config)
        if source.kind == "gguf"
        else stored_tensors(source.path)
    )
    fill_weights(model, tensors, source.name, progress)


def fill_weights(
    model: CausalLM, tensors: Iterable[StoredTensor], name: str, progress: Callable[[str], None]
) -> None:
    """Copy what this rank needs of every stored tensor into its slot, converting to its dtype.

    Names and shapes are compared before the first byte is read.
    """
    pairs = [pair for pair in _matched(model, tensors, name) if pair[1].pieces]
    started = told = time.monotonic()
    done = 0
    whole: list[tuple[StoredTensor, Slot]] = []
    parts: list[Region] = []
    for tensor, slot in pairs:
        split = regions(tensor.place, slot) if tensor.place is not None else None
        if split is None:
            whole.append((tensor, slot))
        else:
            parts += split

    total = sum(tensor.stored_bytes for tensor, _ in whole) + sum(part.count for part in parts)

    def copy(tensor: StoredTensor, slot: Slot) -> int:
        # The mode is per thread, and the caller may have made the weights in it.
        with torch.inference_mode(), damage_in(f"tensor {tensor.name} of {name}"):
            values = tensor.read()
            for piece in slot.pieces:
                piece.view.copy_(values[piece.index])
        return tensor.stored_bytes

    def copy_region(region: Region) -> int:
        with torch.inference_mode(), damage_in(str(region.path)):
            return reader.copy(region)

    reader = Reader(pairs[0][1].pieces[0].view.device if pairs else torch.device("cpu"))
    threads = max(1, min(_MAX_READERS, len(os.sched_getaffinity(0)) // model.shard.size))
    with (
        closing(reader),
        ThreadPoolExecutor(threads, thread_name_prefix="weights") as pool,
    ):
        waiting = [pool.submit(copy, tensor, slot) for tensor, slot in whole]
        waiting += [pool.submit(copy_region, region) for region in interleaved(parts)]
        try:
            for future in as_completed(waiting):
                done += future.result()
                now = time.monotonic()
                if now - told >= _PROGRESS_SECONDS:
                    told = now
                    progress(f"loading weights: {done / 1e9:.2f} of {total / 1e9:.2f} GB")
            reader.finish()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    seconds = time.monotonic() - started
    speed = total / 1e9 / max(seconds, 1e-9)
    progress(f"weights: {total / 1e9:.2f} GB in {seconds:.1f} s ({speed:.2f} GB/s)")


def _matched(
    model: CausalLM, tensors: Iterable[StoredTensor], name: str
) -> list[tuple[StoredTensor, Slot]]:
    slots = model.slots()
    pairs, unexpected = [], []
    for tensor in tensors:
        key = tensor.name.removeprefix(model.prefix)
        slot = slots.pop(key, None)
        if slot is None:
            if not model.ignores(key):
                unexpected.append(tensor.name)
            continue
        if slot.shape != tensor.shape:
            raise CorruptModel(
                f"tensor {tensor.name} of {name} has shape {list(tensor.shape)}; "
                f"the model's config asks for {list(slot.shape)}"
            )
        pairs.append((tensor, slot))
    for found, what in ((sorted(slots), "lacks"), (unexpected, "has unexpected")):
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise CorruptModel(f"{name} {what} tensor {found[0]}{more}")
    return pairs


def _out_of_memory(
    source: ModelSource, needed: int, dtype: torch.dtype, device: torch.device, foreign: int
) -> OutOfMemory:
    name = str(dtype).removeprefix("torch.")
    others = f"; {readable_bytes(foreign)} were in use before the engine started" if foreign else ""
    return OutOfMemory(
        f"the weights of {source.name} take {readable_bytes(needed)} in {name}, more than {device} "
        f"has free{others}: free the GPU, use more GPUs or a smaller model"
    )
