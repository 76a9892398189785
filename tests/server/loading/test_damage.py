"""Damaged files are a StartupError of the right reason with one line, never a traceback."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest
import torch
from tests.server.tiny_models import change_config, make_tiny

from octavo_kernels.ops import select_ops
from octavo_server.config import EngineConfig
from octavo_server.errors import (
    CorruptModel,
    InvalidSettings,
    OutOfMemory,
    StartupError,
    UnsupportedModel,
)
from octavo_server.loading.damage import damage_in
from octavo_server.loading.describe import (
    GenerationDefaults,
    read_generation_defaults,
    read_model_config,
)
from octavo_server.loading.gguf_config import gguf_model_config
from octavo_server.loading.gguf_file import GgufFile, read_gguf
from octavo_server.loading.gguf_tokenizer import build_tokenizer
from octavo_server.loading.load import load_model
from octavo_server.loading.source import ModelSource


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny("llama2", tmp_path / "tiny")


def load(folder: Path, **settings: object) -> None:
    source = ModelSource("folder", folder, None, "tiny")
    load_model(
        source,
        read_model_config(source),
        EngineConfig(model=str(folder), max_model_len=64, **settings),  # type: ignore[arg-type]
        ops=select_ops("cpu"),
        device=torch.device("cpu"),
        dtype=torch.float32,
        progress=lambda _: None,
    )


def defaults(folder: Path, generation_config: str = "auto") -> GenerationDefaults:
    return read_generation_defaults(ModelSource("folder", folder, None, "tiny"), generation_config)


def test_typed_errors_and_lack_of_memory_pass_the_border() -> None:
    for error in (UnsupportedModel("x"), MemoryError(), RuntimeError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)), damage_in("it"):
            raise error
    with pytest.raises(CorruptModel, match=r"it is damaged .ValueError: a b x+[.]{3}"):
        with damage_in("it"):
            raise ValueError("a\nb " + "x" * 1000)


@pytest.mark.parametrize("seed", [2**64, 2**63, -(2**63) - 1])
def test_a_seed_past_64_bits(folder: Path, seed: int) -> None:
    with pytest.raises(InvalidSettings, match="--seed"):
        load(folder, load_format="dummy", seed=seed)


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63)])
def test_the_largest_seeds(folder: Path, seed: int) -> None:
    load(folder, load_format="dummy", seed=seed)


def test_a_model_of_one_position(folder: Path) -> None:
    change_config(folder, max_position_embeddings=1)
    with pytest.raises(UnsupportedModel, match="1 positions"):
        load(folder)


def test_sizes_that_overflow(folder: Path) -> None:
    change_config(folder, hidden_size=2**30, intermediate_size=2**30, head_dim=16)
    with pytest.raises(OutOfMemory):
        load(folder)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("generation_config.json", '{"top_k": NaN}'),
        ("generation_config.json", '{"max_new_tokens": 1e999}'),
        ("generation_config.json", '{"temperature": 7}'),
        ("generation_config.json", '{"top_k": 1099511627776}'),
        ("generation_config.json", '{"max_new_tokens": 0}'),
        ("generation_config.json", "[" * 100_000),
        ("tokenizer_config.json", '{"eos_token": "a", "added_tokens_decoder": {"5": "x"}}'),
        (
            "tokenizer_config.json",
            '{"eos_token": "a", "added_tokens_decoder": {"x": {"content": "a"}}}',
        ),
    ],
)
def test_damaged_defaults(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(CorruptModel) as caught:
        defaults(folder)
    assert "\n" not in str(caught.value)


def test_defaults_that_no_request_may_have_can_be_left_out(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"temperature": 7, "eos_token_id": 1}')
    with pytest.raises(CorruptModel, match="--generation-config vllm"):
        defaults(folder)
    assert defaults(folder, "vllm").temperature is None
    assert 1 in defaults(folder, "vllm").eos_token_ids


def test_eos_ids_without_logits_are_left_out(folder: Path, tmp_path: Path) -> None:
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    (folder / "tokenizer_config.json").write_text("{}")
    text = json.dumps({"eos_token_id": [-1, 1, size - 1, size, 2**70, 1]})
    (folder / "generation_config.json").write_text(text)
    for choice in ("auto", "vllm", str(folder)):
        assert defaults(folder, choice).eos_token_ids == [1, size - 1]


@pytest.mark.parametrize(
    "name",
    [5, None, ["a"], "", "..", "x" * 5000 + ".safetensors", "a/b.safetensors", "a\0.safetensors"],
)
def test_damaged_indices(folder: Path, name: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CorruptModel) as caught:
        load(folder)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("absolute", [True, False])
def test_an_index_must_not_point_outside_its_folder(tmp_path: Path, absolute: bool) -> None:
    folder, other = make_tiny("llama2", tmp_path / "a"), make_tiny("llama2", tmp_path / "b", seed=1)
    outside = str(other / "model.safetensors") if absolute else "../b/model.safetensors"
    index = {"weight_map": {"model.norm.weight": outside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptModel, match="not a safetensors file of its folder"):
        load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer.ggml.tokens": [1, 2]},
        {"tokenizer.ggml.merges": 5},
        {"tokenizer.ggml.merges": ["a b c", "nospace"]},
        {"tokenizer.ggml.pre": ["x"]},
        {"tokenizer.ggml.eos_token_id": "x"},
        {"tokenizer.ggml.token_type": 3},
    ],
)
def test_damaged_gguf_tokenizers(tmp_path: Path, changes: dict[str, object]) -> None:
    file = read_gguf(_gguf(tmp_path / "m.gguf"))
    whole = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.merges": ["a b"],
    }
    build_tokenizer(GgufFile(file.path, whole, {}, 0, file.data))
    with pytest.raises(StartupError) as caught:
        build_tokenizer(GgufFile(file.path, whole | changes, {}, 0, file.data))
    assert "\n" not in str(caught.value)


def _gguf(path: Path, *entries: bytes) -> Path:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries))
    path.write_bytes(head + b"".join(entries) + b"\0" * 64)
    return path


def _key(name: str) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode()


@pytest.mark.parametrize(
    "entry",
    [
        _key("general.alignment") + struct.pack("<II", 4, 0),
        _key("general.alignment") + struct.pack("<IIQ", 9, 4, 0),
        _key("general.architecture") + struct.pack("<IIQ", 9, 4, 0),
        _key("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000,
    ],
    ids=["alignment 0", "alignment is a list", "architecture is a list", "nested arrays"],
)
def test_damaged_gguf_heads(tmp_path: Path, entry: bytes) -> None:
    with pytest.raises(StartupError) as caught:
        gguf_model_config(read_gguf(_gguf(tmp_path / "m.gguf", entry)))
    assert "\n" not in str(caught.value)


def test_a_gguf_file_that_ends_in_its_head(tmp_path: Path) -> None:
    path = _gguf(tmp_path / "m.gguf", _key("general.alignment") + struct.pack("<I", 4))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CorruptModel) as caught:
        read_gguf(path)
    assert re.fullmatch(
        r".*m\.gguf is damaged or incomplete( \(a string runs past the end\))?", str(caught.value)
    )
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1))  # no key where one is announced
    with pytest.raises(CorruptModel, match=r"m\.gguf is damaged or incomplete$"):
        read_gguf(path)
