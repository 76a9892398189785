"""A GGUF file's metadata and table of tensors (numpy only, no torch).

Read by hand: the `gguf` package's reader makes an object per token string and takes seconds.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from octavo_server.errors import CorruptModel, UnsupportedModel
from octavo_server.loading.damage import damage_in

# Value types of the format -> struct codes; 8 is a string, 9 an array.
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
# A sane upper bound: a damaged count must not become a long loop.
_MAX_ENTRIES = 1 << 24


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """`shape` in torch's order (slowest first); `kind` is ggml's number for the encoding."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    data_offset: int
    data: mmap.mmap

    def number(self, key: str, convert: Callable[[Any], float], default: float) -> float:
        value = self.metadata.get(key)
        return default if value is None else convert(value)


def read_gguf(path: Path) -> GgufFile:
    """Parse the head of a GGUF file; CorruptModel if it is damaged. Cached per file version."""
    with damage_in(str(path)):
        stat = path.stat()
        return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2)
def _read(path: Path, _changed: int, size: int) -> GgufFile:
    if size < 24:
        raise CorruptModel(f"{path} is too short to be a GGUF file ({size} bytes)")
    with path.open("rb") as opened:
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    if data[:4] != b"GGUF":
        raise CorruptModel(f"{path} is not a GGUF file (it does not start with GGUF)")
    version = _U32.unpack_from(data, 4)[0]
    if version not in (2, 3):
        raise UnsupportedModel(f"{path} is GGUF version {version}; Octavo reads 2 and 3")
    try:
        return _Cursor(data, 8).file(path)
    except _Damaged as error:
        raise CorruptModel(f"{path} is damaged or incomplete ({error})") from error
    except (struct.error, IndexError, KeyError, ValueError, OverflowError) as error:
        raise CorruptModel(f"{path} is damaged or incomplete") from error


class _Damaged(ValueError):
    """Its text is for people."""


class _Cursor:
    def __init__(self, data: mmap.mmap, offset: int) -> None:
        self.data, self.offset = data, offset

    def u32(self) -> int:
        self.offset += 4
        return int(_U32.unpack_from(self.data, self.offset - 4)[0])

    def u64(self) -> int:
        self.offset += 8
        return int(_U64.unpack_from(self.data, self.offset - 8)[0])

    def count(self) -> int:
        count = self.u64()
        if count > _MAX_ENTRIES:
            raise _Damaged(f"a count of {count}")
        return count

    def raw(self) -> bytes:
        length = self.u64()
        start, self.offset = self.offset, self.offset + length
        if self.offset > len(self.data):
            raise _Damaged("a string runs past the end")
        return self.data[start : self.offset]

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.raw().decode("utf-8", errors="replace")
        if kind == _ARRAY:
            return self.array(self.u32(), self.count())
        return self.scalars(_SCALARS[kind], 1)[0]

    def array(self, kind: int, count: int) -> list[Any]:
        if kind in _SCALARS:
            return list(self.scalars(_SCALARS[kind], count))
        if kind == _ARRAY:
            raise _Damaged("an array of arrays")
        return [self.value(kind) for _ in range(count)]

    def scalars(self, code: str, count: int) -> tuple[Any, ...]:
        form = struct.Struct(f"<{count}{code}")
        self.offset += form.size
        return form.unpack_from(self.data, self.offset - form.size)

    def file(self, path: Path) -> GgufFile:
        tensor_count, key_count = self.count(), self.count()
        metadata = {}
        for _ in range(key_count):
            key = self.raw().decode("utf-8")
            metadata[key] = self.value(self.u32())
        tensors = {}
        for _ in range(tensor_count):
            name = self.raw().decode("utf-8")
            dims = [self.u64() for _ in range(self.u32())]
            if not dims or len(dims) > 4 or math.prod(dims) < 1:
                raise _Damaged(f"tensor {name} has dimensions {dims}")
            tensors[name] = GgufTensor(name, tuple(reversed(dims)), self.u32(), self.u64())
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise _Damaged(f"an alignment of {alignment!r}")
        data_offset = -(-self.offset // alignment) * alignment
        return GgufFile(path, metadata, tensors, data_offset, self.data)
