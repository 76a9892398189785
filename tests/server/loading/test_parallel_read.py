"""Regions of files into weights: split, interleaved, converted, transposed, cut short."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from octavo_server.errors import CorruptModel
from octavo_server.loading import parallel_read
from octavo_server.loading.parallel_read import Reader, interleaved, regions
from octavo_server.loading.safetensors import stored_tensors
from octavo_server.models.slot import whole


@pytest.fixture(autouse=True)
def _small_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_read, "REGION_BYTES", 96)


def _stored(folder: Path, **tensors: torch.Tensor) -> None:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (1, 1), (37, 5), (5, 3, 2), (100, 1)])
@pytest.mark.parametrize("turned", [False, True])
def test_regions_together_are_the_tensor(
    tmp_path: Path,
    stored: torch.dtype,
    held: torch.dtype,
    shape: tuple[int, ...],
    turned: bool,
) -> None:
    values = torch.randn(shape).to(stored)
    _stored(tmp_path, a=torch.ones(3), b=values)
    (tensor,) = (it for it in stored_tensors(tmp_path) if it.name == "b")
    slot = torch.full(shape[::-1] if turned else shape, float("nan"), dtype=held)
    slot = slot.permute(*reversed(range(slot.dim()))) if turned else slot
    assert tensor.place is not None
    parts = regions(tensor.place, whole(slot))
    assert parts is not None
    assert sum(part.count for part in parts) == tensor.stored_bytes
    reader = Reader(torch.device("cpu"))
    assert sum(map(reader.copy, parts)) == tensor.stored_bytes
    reader.finish()
    assert torch.equal(slot, values.to(held))


def test_rows_longer_than_a_region_and_tensors_without_rows_are_not_split(tmp_path: Path) -> None:
    _stored(tmp_path, long=torch.zeros(2, 25), one=torch.tensor(1.0))
    for tensor in stored_tensors(tmp_path):
        assert tensor.place is not None
        assert regions(tensor.place, whole(torch.empty(tensor.shape))) is None


def test_each_file_gives_a_region_in_turn(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({name: torch.zeros(60)}, tmp_path / f"model-{name}.safetensors")
    parts = []
    for tensor in stored_tensors(tmp_path):
        assert tensor.place is not None
        parts += regions(tensor.place, whole(torch.empty(60))) or []
    order = [part.path.stem[-1] for part in interleaved(parts)]
    assert order == ["a", "b"] * 3


def test_a_file_cut_short_after_it_was_listed_is_damage(tmp_path: Path) -> None:
    _stored(tmp_path, a=torch.zeros(64))
    (tensor,) = stored_tensors(tmp_path)
    assert tensor.place is not None
    path = tensor.place.path
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 8)
    reader = Reader(torch.device("cpu"))
    parts = regions(tensor.place, whole(torch.empty(64))) or []
    with pytest.raises(CorruptModel, match="is incomplete"):
        list(map(reader.copy, parts))
    reader.close()
