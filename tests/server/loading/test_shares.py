"""Each rank's weights are its part of the checkpoint's, and no more is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.server.loading.gguf_writing import write_gguf
from tests.server.tiny_models import make_tiny

from octavo_kernels.ops import select_ops
from octavo_server.config import EngineConfig, LoadFormat
from octavo_server.distributed.group import Alone
from octavo_server.errors import CorruptModel, InvalidSettings
from octavo_server.loading import parallel_read
from octavo_server.loading.describe import read_model_config
from octavo_server.loading.load import fill, load_model
from octavo_server.loading.parallel_read import Reader, regions
from octavo_server.loading.safetensors import stored_tensors
from octavo_server.loading.source import resolve_source
from octavo_server.models.causal_lm import CausalLM
from octavo_server.models.registry import build_model
from octavo_server.models.slot import Piece, Slot

# GPT-2's fused, turned products; copied key heads; biases; a tied head; odd vocabularies.
_MODELS: dict[str, dict[str, object]] = {
    "gpt2": {"vocab_size": 391},
    "tinyllama": {"attention_bias": True, "mlp_bias": True, "vocab_size": 389},
    "qwen2": {},
    "qwen3": {"vocab_size": 389},
}


def filled(
    path: Path, rank: int, size: int, load_format: LoadFormat = "auto", seed: int = 0
) -> CausalLM:
    """A rank's model with its weights as they lie before `prepare`."""
    settings = EngineConfig(model=str(path), load_format=load_format, seed=seed)
    source = resolve_source(settings, print)
    config = read_model_config(source)
    model = build_model(
        config, select_ops("cpu"), torch.float32, torch.device("cpu"), group=Alone(rank, size)
    )
    for slot in model.slots().values():
        for piece in slot.pieces:
            piece.view.fill_(float("nan"))
    fill(model, source, config, settings, print)
    return model


def pieces(models: list[CausalLM]) -> Iterator[tuple[str, Slot, Piece]]:
    for model in models:
        for name, slot in model.slots().items():
            for piece in slot.pieces:
                yield name, slot, piece


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("family", sorted(_MODELS))
def test_shares_are_parts_of_the_checkpoint(family: str, size: int, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / "model", **_MODELS[family])
    stored = load_file(folder / "model.safetensors")
    models = [filled(folder, rank, size) for rank in range(size)]
    prefix = models[0].prefix
    weights = {name.removeprefix(prefix): weight for name, weight in stored.items()}
    missing = {name: torch.ones_like(weight) for name, weight in weights.items()}
    for name, slot, piece in pieces(models):
        assert slot.shape == weights[name].shape
        assert torch.equal(piece.view, weights[name][piece.index]), name
        missing[name][piece.index] = 0
    assert not [name for name, left in missing.items() if left.any()]


@pytest.mark.parametrize("family", sorted(_MODELS))
def test_dummy_weights_are_one_model_at_every_size(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / "model", **_MODELS[family])
    only = filled(folder, 0, 1, "dummy", seed=7)
    whole = {name: slot.pieces[0].view for name, slot in only.slots().items()}
    for size in (2, 4):
        ranks = [filled(folder, rank, size, "dummy", seed=7) for rank in range(size)]
        for name, _, piece in pieces(ranks):
            assert torch.equal(piece.view, whole[name][piece.index]), name
    other = filled(folder, 0, 1, "dummy", seed=8).slots()
    for name, view in whole.items():
        # Of 2^14 values: a repeated pattern of rows or columns would show.
        assert len(view.unique()) > 0.6 * min(view.numel(), 10_000)
        assert not torch.equal(view, other[name].pieces[0].view)


@pytest.mark.parametrize("family", ["llama2", "gpt2"])
def test_gguf(family: str, tmp_path: Path) -> None:
    path = write_gguf(make_tiny(family, tmp_path / "model"), tmp_path / "model.gguf")
    only = filled(path, 0, 1)
    whole = {name: slot.pieces[0].view for name, slot in only.slots().items()}
    for name, _, piece in pieces([filled(path, rank, 4) for rank in range(4)]):
        assert torch.equal(piece.view, whole[name][piece.index]), name


@pytest.mark.parametrize(
    ("family", "changes"),
    # The first rank has all of GPT-2's positions: few, as in a model of real size.
    [("llama2", {}), ("gpt2", {"n_positions": 64})],
)
def test_a_rank_of_two_reads_half(
    family: str, changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny(family, tmp_path / "model", **changes)
    size = (folder / "model.safetensors").stat().st_size
    copied: list[int] = []
    plain = Reader.copy

    def counted(self: Reader, region: parallel_read.Region) -> int:
        copied.append(plain(self, region))
        return copied[-1]

    monkeypatch.setattr(Reader, "copy", counted)
    filled(folder, 0, 2)  # whatever is imported late is, after this
    for rank in range(2):
        copied.clear()
        before = bytes_read()
        filled(folder, rank, 2)
        assert 0.47 * size < sum(copied) < 0.56 * size
        assert bytes_read() - before < 0.6 * size  # its settings and the header beside


def bytes_read() -> int:
    """By this process's calls to read (what it copied from mapped files is not in it)."""
    line = next(x for x in Path("/proc/self/io").read_text().splitlines() if x.startswith("rchar"))
    return int(line.split()[1])


def test_a_size_that_does_not_divide_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    folder = make_tiny("smollm2", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    settings = EngineConfig(model=str(folder))
    source = resolve_source(settings, print)
    with pytest.raises(InvalidSettings, match="sizes that work: 1, 2, 6"):
        load_model(
            source, read_model_config(source), settings, ops=select_ops("cpu"),
            device=torch.device("cpu"), dtype=torch.float32, progress=print, group=Alone(0, 4),
        )  # fmt: skip


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("starts", "shape"),
    [((0, 0), (37, 5)), ((3, 7), (20, 4)), ((36, 9), (1, 2)), ((5, 0), (9, 11))],
)
def test_parts_of_rows_and_columns(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: torch.dtype,
    held: torch.dtype,
    turned: bool,
    starts: tuple[int, int],
    shape: tuple[int, int],
) -> None:
    monkeypatch.setattr(parallel_read, "REGION_BYTES", 96)
    values = torch.randn(37, 11).to(stored)
    save_file({"a": torch.ones(3), "b": values}, tmp_path / "model.safetensors")
    (tensor,) = (it for it in stored_tensors(tmp_path) if it.name == "b")
    view = torch.empty(shape[::-1] if turned else shape, dtype=held)
    piece = Piece(view.t() if turned else view, starts)
    assert tensor.place is not None
    parts = regions(tensor.place, Slot((37, 11), (piece,)))
    assert parts is not None
    reader = Reader(torch.device("cpu"))
    assert sum(map(reader.copy, parts)) == view.numel() * stored.itemsize
    reader.finish()
    assert torch.equal(piece.view, values[piece.index].to(held))


@pytest.mark.parametrize("mapped_first", [False, True])
def test_columns_of_a_file_cut_short_are_damage(tmp_path: Path, mapped_first: bool) -> None:
    save_file({"a": torch.zeros(64, 1024)}, tmp_path / "model.safetensors")
    (tensor,) = stored_tensors(tmp_path)
    assert tensor.place is not None
    parts = regions(tensor.place, Slot((64, 1024), (Piece(torch.empty(64, 8), (0, 1016)),)))
    assert parts
    reader = Reader(torch.device("cpu"))
    if mapped_first:
        list(map(reader.copy, parts))
    with tensor.place.path.open("r+b") as file:
        file.truncate(tensor.place.path.stat().st_size // 2)
    with pytest.raises(CorruptModel, match="is incomplete: it ends at byte"):
        list(map(reader.copy, parts))
    reader.close()
