"""Read regions of files into the model's weights: several at once, through pinned memory to a GPU.

A thread reads into one of its two buffers while the device still copies from the other. Measured
speed is in docs/start-up.md.

Parts of columns (a rank's share of a row-parallel weight) are copied out of the mapped file, one
call a region: a read for each row costs more than it copies, 16 threads of them 0.8 GB/s in rows of
4 KiB where mapped ones copy 2 to 9 GB/s (2 cores, cached file). The kernel is asked for the whole
region beforehand; the gaps are other ranks' columns, which this host reads anyway.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import torch

from octavo_server.errors import CorruptModel
from octavo_server.loading.checkpoint import Place
from octavo_server.models.slot import Piece, Slot

REGION_BYTES = 8 << 20
"""Of one read. Long enough that a call and a launch (tens of us) are nothing beside the copy (8 MiB
take 0.4 ms over PCIe 5); short enough that 16 threads' buffers, 256 MiB, are pinned in 0.1 s."""

_BUFFERS = 2


class Region:
    """Some rows of a piece: the bytes of a file that fill a part of a weight.

    The whole rows of a tensor lie one after another; of a part of the columns, `row_bytes` are
    wanted every `stride` bytes.
    """

    __slots__ = ("dtype", "path", "row_bytes", "rows", "slot", "start", "stride")

    def __init__(
        self, place: Place, shape: tuple[int, ...], piece: Piece, first: int, last: int
    ) -> None:
        self.dtype: torch.dtype = getattr(torch, place.dtype)
        self.path = place.path
        self.rows = last - first
        self.row_bytes = _row_bytes(place, tuple(piece.view.shape))
        self.stride = _row_bytes(place, shape)
        start, *columns = piece.starts
        skipped = columns[0] * _row_bytes(place, shape[1:]) if columns else 0
        # bytes from the file's beginning
        self.start = place.start + (start + first) * self.stride + skipped
        self.slot = piece.view[first:last]

    @property
    def count(self) -> int:
        """Bytes to copy."""
        return self.rows * self.row_bytes

    @property
    def end(self) -> int:
        return self.start + (self.rows - 1) * self.stride + self.row_bytes

    @property
    def is_contiguous(self) -> bool:
        return self.row_bytes == self.stride or self.rows == 1


def regions(place: Place, slot: Slot) -> list[Region] | None:
    """What is needed of the tensor in parts of whole rows; None where it has no rows or one is too
    long.
    """
    found: list[Region] = []
    for piece in slot.pieces:
        view = piece.view
        # Rows and columns are what weights are cut by.
        assert view.shape[2:] == slot.shape[2:]
        if view.dim() == 0 or _row_bytes(place, tuple(view.shape)) > REGION_BYTES:
            return None
        if view.numel() == 0:
            continue
        rows = max(1, REGION_BYTES // _row_bytes(place, tuple(view.shape)))
        found += [
            Region(place, slot.shape, piece, first, min(first + rows, len(view)))
            for first in range(0, len(view), rows)
        ]
    return found


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
        self._maps: dict[Path, mmap.mmap] = {}
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
        file = self._file(region.path)
        mapped = None if region.is_contiguous else self._map(region.path, file)
        lane.copy(file, mapped, region)
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
            self._maps.clear()

    def _file(self, path: Path) -> int:
        with self._lock:
            found = self._files.get(path)
            if found is None:
                found = self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return found

    def _map(self, path: Path, file: int) -> mmap.mmap:
        with self._lock:
            found = self._maps.get(path)
            if found is None:
                found = self._maps[path] = mmap.mmap(file, 0, prot=mmap.PROT_READ)
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

    def copy(self, file: int, mapped: mmap.mmap | None, region: Region) -> None:
        turn = self._turn = (self._turn + 1) % _BUFFERS
        if self._on_gpu:
            self._copied[turn].synchronize()  # at once where nothing was recorded yet
        into = self._views[turn][: region.count]
        if mapped is None:
            _read_all(file, into, region)
        else:
            _cut_out(file, mapped, into, region)
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
            raise _cut_short(region, region.start + done)
        done += count


def _cut_out(file: int, mapped: mmap.mmap, into: memoryview, region: Region) -> None:
    size = min(len(mapped), os.fstat(file).st_size)
    if region.end > size:  # to touch a page past the end would kill the process
        raise _cut_short(region, size)
    page = region.start // mmap.PAGESIZE * mmap.PAGESIZE
    mapped.madvise(mmap.MADV_WILLNEED, page, region.end - page)
    found = np.frombuffer(mapped, np.uint8, region.end - region.start, region.start)
    shape = (region.rows, region.row_bytes)
    rows = np.lib.stride_tricks.as_strided(found, shape, (region.stride, 1), writeable=False)
    np.copyto(np.frombuffer(into, np.uint8).reshape(shape), rows)


def _cut_short(region: Region, size: int) -> CorruptModel:
    return CorruptModel(
        f"{region.path} is incomplete: it ends at byte {size}, before its weights do"
    )


def _row_bytes(place: Place, shape: tuple[int, ...]) -> int:
    dtype: torch.dtype = getattr(torch, place.dtype)
    return math.prod(shape[1:]) * dtype.itemsize
