"""Folders: what is found, what is loaded, and what each kind of damage says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.server.tiny_models import make_tiny

from octavo_kernels.ops import select_ops
from octavo_server.config import EngineConfig
from octavo_server.errors import (
    CorruptModel,
    InvalidSettings,
    ModelNotFound,
    StartupError,
    UnsupportedModel,
)
from octavo_server.loading.describe import GenerationDefaults, read_generation_defaults
from octavo_server.loading.describe import read_model_config as read_config
from octavo_server.loading.load import load_model
from octavo_server.loading.source import resolve_source
from octavo_server.loading.tokenizer import load_tokenizer
from octavo_server.models.causal_lm import CausalLM


def load(folder: Path, **settings: object) -> CausalLM:
    lines: list[str] = []
    config = EngineConfig(model=str(folder), **settings)  # type: ignore[arg-type]
    source = resolve_source(config, lines.append)
    model = load_model(
        source,
        read_config(source),
        config,
        ops=select_ops("cpu"),
        device=torch.device("cpu"),
        dtype=torch.float32,
        progress=lines.append,
    )
    assert any("weights" in line and " s" in line for line in lines)
    return model


def plain(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny("llama2", tmp_path / "model")


def refused(kind: type[StartupError], folder: Path | str, **settings: object) -> str:
    with pytest.raises(kind) as caught:
        load(Path(folder) if isinstance(folder, Path) else folder, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def hidden_of(model: CausalLM) -> torch.Tensor:
    return model.logits(torch.linspace(-1, 1, model.config.hidden_size).view(1, -1))


def test_one_file_and_several_are_the_same(folder: Path) -> None:
    whole = hidden_of(load(folder))
    weights = plain(folder)
    names = sorted(weights)
    (folder / "model.safetensors").unlink()
    index = {}
    for part, chosen in enumerate((names[::2], names[1::2])):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        save_file({name: weights[name] for name in chosen}, folder / file)
        index |= dict.fromkeys(chosen, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    torch.testing.assert_close(hidden_of(load(folder)), whole, rtol=0, atol=0)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "lacks 1 of 2 weight files, model-00002" in refused(CorruptModel, folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "is not a safetensors index" in refused(CorruptModel, folder)


def test_weights_load_in_inference_mode_too(folder: Path) -> None:
    expected = hidden_of(load(folder))
    with torch.inference_mode():
        torch.testing.assert_close(hidden_of(load(folder)), expected, rtol=0, atol=0)


def test_missing_unexpected_and_misshaped_tensors_are_named(folder: Path) -> None:
    weights, path = plain(folder), folder / "model.safetensors"
    victim = "model.layers.1.self_attn.k_proj.weight"
    save_file({name: weight for name, weight in weights.items() if name != victim}, path)
    assert "lacks tensor layers.1.self_attn.k_proj.weight" in refused(CorruptModel, folder)
    save_file(weights | {"model.layers.9.extra.weight": torch.ones(2)}, path)
    assert "unexpected tensor model.layers.9.extra.weight" in refused(CorruptModel, folder)
    save_file(weights | {victim: torch.ones(64, 32)}, path)
    message = refused(CorruptModel, folder)
    assert victim in message
    assert "[64, 32]" in message and "[64, 64]" in message
    save_file(weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, path)
    load(folder)


def test_integer_weights_are_refused(folder: Path) -> None:
    weights = plain(folder)
    weights["model.norm.weight"] = torch.ones(64, dtype=torch.int8)
    save_file(weights, folder / "model.safetensors")
    assert "type I8" in refused(UnsupportedModel, folder)


def test_truncated_weights_and_pointers(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for size in (0, 4, 100, len(content) - 1):
        path.write_bytes(content[:size])
        assert "damaged or incomplete" in refused(CorruptModel, folder)
    path.write_text("version https://git-lfs.example/spec/v1\noid sha256:0\nsize 5\n")
    assert "git lfs pull" in refused(CorruptModel, folder)


def test_pickles_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "convert them to safetensors" in refused(UnsupportedModel, folder)
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.safetensors").mkdir()
    assert "has no *.safetensors" in refused(CorruptModel, folder)


def test_gpt2_checkpoints_without_the_prefix_and_with_masks(tmp_path: Path) -> None:
    folder = make_tiny("gpt2", tmp_path / "model")
    expected = hidden_of(load(folder))
    weights = {name.removeprefix("transformer."): w for name, w in plain(folder).items()}
    weights["h.0.attn.bias"] = torch.ones(1, 1, 512, 512)
    weights["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, folder / "model.safetensors")
    torch.testing.assert_close(hidden_of(load(folder)), expected, rtol=0, atol=0)


def test_names_that_lead_nowhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder.parent
    assert "no file or folder /nowhere/at/all" in refused(ModelNotFound, "/nowhere/at/all")
    assert "no file or folder model.gguf" in refused(ModelNotFound, "model.gguf")
    assert "nor a Hub id" in refused(ModelNotFound, "not an id!")
    assert f"did you mean {folder}" in refused(ModelNotFound, root)
    empty = root / "empty"
    empty.mkdir()
    assert "is empty" in refused(ModelNotFound, empty)
    (empty / "model.Q4.gguf").write_text("")
    assert "model.Q4.gguf" in refused(ModelNotFound, empty)
    assert "not a .gguf file" in refused(UnsupportedModel, folder / "model.safetensors")


def test_damaged_configs(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "cannot be read as JSON" in refused(CorruptModel, folder)
    (folder / "config.json").write_text("[]")
    assert "does not hold a JSON object" in refused(CorruptModel, folder)


def test_load_format_must_fit(folder: Path) -> None:
    assert "--load-format gguf" in refused(InvalidSettings, folder, load_format="gguf")


def test_dummy_weights_are_small_never_zero_and_seeded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()

    def filled(seed: int) -> dict[str, torch.Tensor]:
        model = load(folder, load_format="dummy", seed=seed)
        return {"table": model.embedding.table, "norm": model.norm.weight}  # type: ignore[attr-defined]

    one, two, other = filled(1), filled(1), filled(2)
    for name, weight in one.items():
        assert weight.abs().max() <= 1e-3
        assert (weight != 0).all()
        assert torch.equal(weight, two[name])
        assert not torch.equal(weight, other[name])
    assert one["table"].std() > 4e-4


def test_narrow_dummy_weights_are_never_zero() -> None:
    from tests.server.models.published_configs import GPT2

    from octavo_server.loading.dummy import fill_dummy
    from octavo_server.model_config import parse_config
    from octavo_server.models.registry import build_model

    config = parse_config(GPT2 | {"n_layer": 1, "n_embd": 64, "n_head": 4, "vocab_size": 5000})
    model = build_model(config, select_ops("cpu"), torch.bfloat16, torch.device("cpu"))
    fill_dummy(model, 0)
    for name, slot in model.slots().items():
        (piece,) = slot.pieces
        assert (piece.view != 0).all(), name
        assert piece.view.float().abs().max() <= 1.001e-3, name


class TestGenerationDefaults:
    def read(self, folder: Path, which: str = "auto", **given: object) -> GenerationDefaults:
        (folder / "generation_config.json").write_text(json.dumps(given))
        return read_generation_defaults(
            resolve_source(EngineConfig(model=str(folder)), print), which
        )

    def test_the_models_own(self, folder: Path) -> None:
        found = self.read(
            folder, eos_token_id=[7, 5], temperature=0.6, top_p=0.9, top_k=20,
            min_p=0.1, repetition_penalty=1.1, max_new_tokens=99, do_sample=True,
        )  # fmt: skip
        assert found.eos_token_ids[:2] == [7, 5]
        assert (found.temperature, found.top_p, found.top_k, found.min_p) == (0.6, 0.9, 20, 0.1)
        assert (found.repetition_penalty, found.max_new_tokens) == (1.1, 99)

    def test_eos_falls_back_to_config_json(self, folder: Path) -> None:
        assert self.read(folder).eos_token_ids == [2]
        assert self.read(folder, eos_token_id=0).eos_token_ids[0] == 0

    def test_the_tokenizers_eos_is_added(self, folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        config = {"eos_token": "<end>", "added_tokens_decoder": {"17": {"content": "<end>"}}}
        path.write_text(json.dumps(config))
        assert self.read(folder, eos_token_id=[7]).eos_token_ids == [7, 17]

    def test_neutral(self, folder: Path) -> None:
        found = self.read(folder, "vllm", eos_token_id=[7], temperature=0.1)
        assert found == GenerationDefaults(eos_token_ids=[7])

    def test_another_folder(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "generation_config.json").write_text('{"temperature": 0.25}')
        found = self.read(folder, str(tmp_path), eos_token_id=7, top_k=3)
        assert found == GenerationDefaults(eos_token_ids=[7], temperature=0.25)
        with pytest.raises(InvalidSettings, match="auto, vllm or a folder"):
            self.read(folder, str(tmp_path / "nothing"))

    def test_nonsense(self, folder: Path) -> None:
        with pytest.raises(CorruptModel, match="temperature 'hot'"):
            self.read(folder, temperature="hot")
        with pytest.raises(CorruptModel, match="eos_token_id '</s>'"):
            self.read(folder, eos_token_id="</s>")


class TestTokenizer:
    def test_a_folders_own(self, folder: Path) -> None:
        tokenizer = load_tokenizer(
            resolve_source(EngineConfig(model=str(folder)), print), None, True
        )
        assert tokenizer.eos_token_id == 2
        text = "The capital of France <|im_end|> é"
        assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_what_does_not_load(self, folder: Path, tmp_path: Path) -> None:
        source = resolve_source(EngineConfig(model=str(folder)), print)
        config = json.loads((folder / "config.json").read_text())
        # transformers says it in two lines, of which the first only announces it.
        (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 7}))
        with pytest.raises(CorruptModel, match=r"does not load: .* heads") as caught:
            load_tokenizer(source, None, False)
        assert "\n" not in str(caught.value)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer.json").write_text("{")
        with pytest.raises(CorruptModel, match="does not load"):
            load_tokenizer(source, None, False)
        with pytest.raises(ModelNotFound, match=r"^--tokenizer: there is no file or folder /nope$"):
            load_tokenizer(source, "/nope", False)
        for path in folder.glob("*token*"):
            path.unlink()
        with pytest.raises(CorruptModel, match="no tokenizer files"):
            load_tokenizer(source, None, False)
