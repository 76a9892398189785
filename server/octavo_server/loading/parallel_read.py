"""Read regions of files into the model's weights: several at once, through pinned memory to a GPU.

A thread reads into one of its two buffers while the device still copies from the other. Measured
speed is in docs/start-up.md.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain, zip_longest
from pathlib import Path

import torch
from torch import Tensor

from octavo_server.errors import CorruptModel
from octavo_server.loading.checkpoint import Place

REGION_BYTES = 8 << 20
"""Of one read. Long enough that a call and a launch (tens of us) are nothing beside the copy (8 MiB
take 0.4 ms over PCIe 5); short enough that 16 threads' buffers, 256 MiB, are pinned in 0.1 s."""

_BUFFERS = 2


class Region:
    """Rows `[first, last)` of a stored tensor, and the view of a weight that they fill."""

    __slots__ = ("count", "dtype", "path", "slot", "start")

    def __init__(self, place: Place, slot: Tensor, first: int, last: int) -> None:
        row_bytes = _row_bytes(place, slot)
        self.path = place.path
        self.start = place.start + first * row_bytes  # bytes from the file's beginning
        self.count = (last - first) * row_bytes  # bytes
        self.dtype: torch.dtype = getattr(torch, place.dtype)
        self.slot = slot[first:last]


def regions(place: Place, slot: Tensor) -> list[Region] | None:
    """The tensor in parts of whole rows; None where it has no rows or one is too long."""
    if slot.dim() == 0 or slot.numel() == 0 or _row_bytes(place, slot) > REGION_BYTES:
        return None
    rows = max(1, REGION_BYTES // _row_bytes(place, slot))
    return [
        Region(place, slot, first, min(first + rows, len(slot)))
        for first in range(0, len(slot), rows)
    ]


def interleaved(parts: list[Region]) -> Iterator[Region]:
    """From each file in turn: a network's disk serves several at once faster than one."""
    files: dict[Path, list[Region]] = {}
    for part in sorted(parts, key=lambda part: part.start):
        files.setdefault(part.path, []).append(part)
    return (part for part in chain(*zip_longest(*files.values())) if part is not None)


class Reader:
    """Shared by the threads of one load; `finish` before the weights are used."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._local = threading.local()
        self._lanes: list[_Lane] = []
        self._files: dict[Path, int] = {}
        self._lock = threading.Lock()

    def copy(self, region: Region) -> int:
        """Read a region and start its copy, in the calling thread; returns its bytes.

        Raises CorruptModel where the file ends too early, OSError where it cannot be read.
        """
        lane: _Lane | None = getattr(self._local, "lane", None)
        if lane is None:
            lane = self._local.lane = _Lane(self._device)
            with self._lock:
                self._lanes.append(lane)
        lane.copy(self._file(region.path), region)
        return region.count

    def finish(self) -> None:
        """Wait until everything has arrived, and close the files."""
        for lane in self._lanes:
            lane.finish()
        self.close()

    def close(self) -> None:
        with self._lock:
            for file in self._files.values():
                os.close(file)
            self._files.clear()

    def _file(self, path: Path) -> int:
        with self._lock:
            found = self._files.get(path)
            if found is None:
                found = self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return found


class _Lane:
    """One thread's buffers and stream."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._device = device
        # uint8 [REGION_BYTES] each
        self._buffers = [
            torch.empty(REGION_BYTES, dtype=torch.uint8, pin_memory=self._on_gpu)
            for _ in range(_BUFFERS)
        ]
        self._views = [memoryview(buffer.numpy().data) for buffer in self._buffers]
        self._turn = 0
        self._stream: torch.cuda.Stream | None = None
        self._copied: list[torch.cuda.Event] = []
        if self._on_gpu:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._copied = [torch.cuda.Event() for _ in range(_BUFFERS)]  # type: ignore[no-untyped-call]

    def copy(self, file: int, region: Region) -> None:
        turn = self._turn = (self._turn + 1) % _BUFFERS
        if self._on_gpu:
            self._copied[turn].synchronize()  # at once where nothing was recorded yet
        _read_all(file, self._views[turn][: region.count], region)
        read = self._buffers[turn][: region.count].view(region.dtype).view(region.slot.shape)
        with torch.cuda.stream(self._stream) if self._on_gpu else nullcontext():
            if self._on_gpu and not (
                region.slot.dtype == region.dtype and region.slot.is_contiguous()
            ):
                # Converted and transposed there: torch would do it here first, on one core.
                read = read.to(self._device, non_blocking=True)
            region.slot.copy_(read, non_blocking=True)
            if self._on_gpu:
                self._copied[turn].record(self._stream)

    def finish(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


def _read_all(file: int, into: memoryview, region: Region) -> None:
    done = 0
    while done < len(into):
        count = os.preadv(file, [into[done:]], region.start + done)
        if count == 0:
            raise CorruptModel(
                f"{region.path} is incomplete: it ends at byte {region.start + done}, before "
                "its weights do"
            )
        done += count


def _row_bytes(place: Place, slot: Tensor) -> int:
    dtype: torch.dtype = getattr(torch, place.dtype)
    return math.prod(slot.shape[1:]) * dtype.itemsize
