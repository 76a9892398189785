"""The load benchmark's own parts: several files, every tensor in them, and differences seen."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from benchmarks import load

from octavo_server.loading.safetensors import stored_tensors, weight_files

SHAPES = {"embed": (300, 64), "layer.0": (64, 64), "layer.1": (64, 64), "norm": (64,)}


def test_files_hold_every_tensor_and_a_changed_one_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "FILE_BYTES", 40_000)
    total = load.write_checkpoint(tmp_path, SHAPES)
    assert total == 2 * (300 * 64 + 2 * 64 * 64 + 64)
    assert len(weight_files(tmp_path)) == 2
    stored = {tensor.name: tensor for tensor in stored_tensors(tmp_path)}
    assert {name: tensor.shape for name, tensor in stored.items()} == SHAPES
    slots = {name: tensor.read().clone() for name, tensor in stored.items()}
    assert all(slot.isfinite().all() and slot.any() for slot in slots.values())
    assert not torch.equal(slots["layer.0"], slots["layer.1"])
    assert load.differing(tmp_path, slots) == ([], len(SHAPES))
    slots["layer.1"][3, 5] += 1
    assert load.differing(tmp_path, slots) == (["layer.1"], len(SHAPES))


def test_says_where_there_is_no_room(tmp_path: Path) -> None:
    with pytest.raises(load.NoRoom, match=str(tmp_path)), load.scratch(tmp_path, 1 << 60):
        pass


def test_a_checkpoint_goes_through_the_engines_loader(tmp_path: Path) -> None:
    asked = argparse.Namespace(tiny=True, folder=tmp_path, repeats=2, commit="here")
    found = load.measure(asked)
    assert found["wrong"] == [] and found["compared"] > 10
    assert len(found["seconds"]) == 2 and found["bytes"] > 0
