"""A folder's safetensors, in one file or several; the files stay mapped, nothing is copied here."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo_server.errors import CorruptModel, UnsupportedModel
from octavo_server.loading.checkpoint import Place, StoredTensor
from octavo_server.loading.damage import damage_in
from octavo_server.loading.json_file import read_json

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_LONGEST_NAME = 255
_LFS_POINTER = b"version https://git-lfs"


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the model's weights, in the order of their names.

    Raises UnsupportedModel for folders of pickles, CorruptModel where files are missing.
    """
    index = folder / INDEX
    if index.is_file():
        return _indexed_files(index)
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    # consolidated*: the same weights again, in the names of another framework.
    files = sorted(
        path
        for path in folder.glob("*.safetensors")
        if path.is_file() and not path.name.startswith(("consolidated", "adapter_"))
    )
    if files:
        return files
    pickles = sorted(path.name for path in folder.glob("*.bin")) + sorted(
        path.name for path in folder.glob("*.pt*")
    )
    if pickles:
        raise UnsupportedModel(
            f"{folder} holds its weights as pickles ({pickles[0]}), which can run code when read; "
            "convert them to safetensors (model.save_pretrained of transformers does)"
        )
    raise CorruptModel(f"{folder} has no *.safetensors files")


def index_names(index: Path) -> list[str]:
    """The files that a safetensors index speaks of, all of them beside it."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict):
        raise CorruptModel(f"{index} is not a safetensors index (it has no weight_map)")
    names = list(found.values())
    for name in names:
        if not _is_weight_file(name):
            raise CorruptModel(
                f"{index} names {str(name)[:80]!r}, which is not a safetensors file of its folder"
            )
    return sorted(set(names))


def _is_weight_file(name: object) -> bool:
    """Whether it stays in the index's folder: no absolute path, no `..`, no folder below."""
    return (
        isinstance(name, str)
        and Path(name).name == name
        and name.endswith(".safetensors")
        and len(name.encode(errors="replace")) <= _LONGEST_NAME
    )


def _indexed_files(index: Path) -> list[Path]:
    names = index_names(index)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CorruptModel(
            f"{index.parent} lacks {len(missing)} of {len(names)} weight files, {missing[0]} first"
        )
    return [index.parent / name for name in names]


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """Every tensor of the folder's weight files."""
    return [tensor for path in weight_files(folder) for tensor in _file_tensors(path)]


def _file_tensors(path: Path) -> list[StoredTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        with path.open("rb") as opened:
            pointer = opened.read(len(_LFS_POINTER)) == _LFS_POINTER
        if pointer:
            raise CorruptModel(
                f"{path} is a Git LFS pointer, not weights: run `git lfs pull` in its folder"
            ) from None
        raise CorruptModel(f"{path} is damaged or incomplete ({error})") from error
    with damage_in(str(path)):
        return _listed(file, path)


def _listed(file: Any, path: Path) -> list[StoredTensor]:
    starts = _starts(path)
    found = []
    for name in file.keys():  # noqa: SIM118 (not a dict)
        part = file.get_slice(name)
        dtype, shape = part.get_dtype(), tuple(part.get_shape())
        read = partial(_read, file, name, path, dtype)
        size = _BYTES.get(dtype, 1) * math.prod(shape)
        place = Place(path, starts[name], _TORCH_NAMES[dtype]) if dtype in _BYTES else None
        found.append(StoredTensor(name, shape, size, read, place))
    return found


def _starts(path: Path) -> dict[str, int]:
    """Where each tensor begins in the file, in bytes. `safe_open` has checked the header."""
    with path.open("rb") as file:
        end = 8 + int.from_bytes(file.read(8), "little")
    return {name: end + int(entry["data_offsets"][0]) for name, entry in read_header(path).items()}


def read_header(path: Path) -> dict[str, Any]:
    """Each tensor's dtype, shape and offsets from the header's end. Raises CorruptModel.

    Source: safetensors' format: its header's length (8 bytes, little-endian), the header (JSON),
    the tensors.
    """
    with damage_in(str(path)), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise CorruptModel(f"{path} is damaged or incomplete (it is shorter than its header)")
        header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return header


def _read(file: Any, name: str, path: Path, dtype: str) -> Tensor:
    if dtype not in _BYTES:
        raise UnsupportedModel(f"tensor {name} in {path} is of type {dtype}, not a plain float")
    tensor: Tensor = file.get_tensor(name)
    return tensor
