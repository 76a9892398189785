"""How fast the engine's loader fills a GPU: a real checkpoint of llama-8b's shape, from memory.

    python benchmarks/load.py                     # 16 GB under /dev/shm, about a minute
    python benchmarks/load.py --tiny              # a rehearsal on a CPU

Every tensor is in the files, random and finite, in the layout that safetensors give a model of this
size (files of 4 GiB). Each repeat fills zeroed weights by the engine's own code; then tensors are
read again, by safetensors alone, and compared on the device, bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from benchmarks.rows import results
from benchmarks.rows.workloads import model as workload
from benchmarks.servers import ROOT
from safetensors import safe_open

from octavo_kernels.ops import select_ops
from octavo_server.config import EngineConfig
from octavo_server.loading.describe import read_model_config
from octavo_server.loading.load import fill
from octavo_server.loading.safetensors import INDEX, weight_files
from octavo_server.loading.source import resolve_source
from octavo_server.models.registry import build_model

FILE_BYTES = 4 << 30
"""As the files of published models of this size."""

PERIOD = (32 << 20) + 4099
"""16-bit numbers before the bytes repeat: no multiple of a region, so that one that lands in
another's place is seen."""

FINITE = 0xBFFF
"""Clears the highest bit of a 16-bit float's exponent: below 2 in magnitude, never NaN."""

COMPARED = 16
MEMORY = Path("/dev/shm")


class NoRoom(Exception):
    """One sentence that says where there is too little space."""


def file_groups(shapes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """Names of the tensors of each file, in order."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        if groups[-1] and filled + size > FILE_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def write_checkpoint(folder: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """All tensors as bfloat16; returns their bytes. Every core writes."""
    pool = np.random.default_rng(0).integers(0, 1 << 16, PERIOD, dtype=np.uint16) & FINITE
    chunk = memoryview(pool).cast("B")
    groups = file_groups(shapes)
    total = 0
    index: dict[str, str] = {}
    with ThreadPoolExecutor(min(16, len(os.sched_getaffinity(0)))) as writers:
        waiting = []
        files = []
        for number, names in enumerate(groups):
            file_name = f"model-{number + 1:05}-of-{len(groups):05}.safetensors"
            header: dict[str, Any] = {}
            end = 0
            for name in names:
                begin, end = end, end + 2 * int(np.prod(shapes[name]))
                header[name] = {
                    "dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [begin, end],
                }  # fmt: skip
                index[name] = file_name
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            file = os.open(folder / file_name, os.O_RDWR | os.O_CREAT, 0o644)
            files.append(file)
            os.pwrite(file, len(text).to_bytes(8, "little") + text, 0)
            for place in range(0, end, len(chunk)):
                part = chunk[: min(len(chunk), end - place)]
                waiting.append(writers.submit(_write, file, part, 8 + len(text) + place))
            total += end
        for future in waiting:
            future.result()
        for file in files:
            os.close(file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return total


def _write(file: int, part: memoryview, place: int) -> None:
    done = 0
    while done < len(part):
        done += os.pwrite(file, part[done:], place + done)


def differing(folder: Path, weights: dict[str, torch.Tensor]) -> tuple[list[str], int]:
    """Names of compared tensors that are not what the files hold, and how many were compared."""
    names = sorted(weights, key=lambda name: (-weights[name].numel(), name))
    chosen = names[:: max(1, len(names) // COMPARED)] + names[-1:]
    wrong = []
    where = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt", device="cpu") as file:
            where |= dict.fromkeys(file.keys(), path)
    for name in dict.fromkeys(chosen):
        weight = weights[name]
        with safe_open(where[name], framework="pt", device="cpu") as file:
            stored = file.get_tensor(name).to(weight.device).to(weight.dtype)
        if not torch.equal(stored, weight) or not stored.any():
            wrong.append(name)
    return wrong, len(dict.fromkeys(chosen))


@contextmanager
def scratch(parent: Path | None, needed: int) -> Iterator[Path]:
    """A folder with room for so many bytes: in memory where there is as much, then gone."""
    parents = [parent] if parent else [MEMORY, Path(tempfile.gettempdir())]
    for place in parents:
        if place.is_dir() and shutil.disk_usage(place).free > needed * 1.02:
            break
    else:
        raise NoRoom(f"{' and '.join(map(str, parents))} have no room for {needed / 1e9:.1f} GB")
    folder = Path(tempfile.mkdtemp(prefix="octavo-load-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    shape = workload("llama", tiny=args.tiny)
    device, dtype = torch.device(shape.device), getattr(torch, shape.dtype)
    with tempfile.TemporaryDirectory() as described:
        source_folder = shape.write(Path(described), Path(described, "no-tokenizer"))
        config = EngineConfig(model=str(source_folder), device=shape.device)
        model_config = read_model_config(resolve_source(config, lambda _: None))
        ops = select_ops(device.type)
        model = build_model(model_config, ops, dtype, device, max_len=8192)
        # On one GPU each tensor fills one weight.
        weights = {name: slot.pieces[0].view for name, slot in model.slots().items()}
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        needed = sum(2 * weight.numel() for weight in weights.values())
        with scratch(args.folder, needed) as folder:
            shutil.copy(source_folder / "config.json", folder)
            began = time.perf_counter()
            total = write_checkpoint(folder, shapes)
            made = time.perf_counter() - began
            seconds = []
            config = EngineConfig(model=str(folder), device=shape.device)
            source = resolve_source(config, lambda _: None)
            for _ in range(args.repeats):
                with torch.inference_mode():
                    for weight in weights.values():
                        weight.zero_()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                began = time.perf_counter()
                fill(
                    model, source, model_config, config,
                    lambda text: print(text, file=sys.stderr),
                )  # fmt: skip
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - began)
            wrong, compared = differing(folder, weights)
            files = len(weight_files(folder))
    return {
        "machine": results.machine(),
        "versions": results.versions(),
        "commit": args.commit or results.commit_here(ROOT),
        "model": shape.name,
        "device": str(device),
        "folder": str(folder.parent),
        "bytes": total,
        "files": files,
        "tensors": len(shapes),
        "threads": min(16, len(os.sched_getaffinity(0))),
        "made_seconds": made,
        "seconds": seconds,
        "gb_per_s": total / 1e9 / statistics.median(seconds),
        "compared": compared,
        "wrong": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="default: /dev/shm, else the temporary folder")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int, default=90, help="seconds, then it gives up")
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "load.json")
    parser.add_argument("--commit", help="default: git's")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    args = parser.parse_args()

    def give_up(*_: object) -> None:
        sys.exit(f"error: not done within {args.limit} s")  # the folder is removed on the way out

    signal.signal(signal.SIGALRM, give_up)
    signal.signal(signal.SIGTERM, give_up)
    signal.alarm(args.limit)
    try:
        found = measure(args)
    except NoRoom as error:
        sys.exit(f"error: {error}")
    signal.alarm(0)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    each = ", ".join(f"{one:.2f}" for one in found["seconds"])
    verdict = "equal" if not found["wrong"] else f"DIFFERENT: {', '.join(found['wrong'])}"
    print(
        f"{found['model']}: {found['bytes'] / 1e9:.2f} GB in {found['files']} files under "
        f"{found['folder']} to {found['device']} in {each} s: {found['gb_per_s']:.1f} GB/s "
        f"(median, {found['threads']} threads); {found['compared']} tensors compared: {verdict}; "
        f"files made in {found['made_seconds']:.1f} s"
    )
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
