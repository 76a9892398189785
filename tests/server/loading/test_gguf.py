"""GGUF files: the same model as the safetensors they were made from, and what damage says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from tests.server.loading.gguf_writing import write_gguf
from tests.server.models.step import Rows
from tests.server.models.twin import SMOLLM2, transformers_twin
from tests.server.tiny_models import change_config, make_tiny

from octavo_kernels.ops import select_ops
from octavo_server.config import EngineConfig
from octavo_server.errors import CorruptModel, UnsupportedModel
from octavo_server.loading.describe import read_generation_defaults, read_model_config
from octavo_server.loading.gguf import stored_gguf_tensors
from octavo_server.loading.gguf_file import read_gguf
from octavo_server.loading.load import load_model
from octavo_server.loading.source import ModelSource, resolve_source
from octavo_server.loading.tokenizer import load_tokenizer
from octavo_server.models.causal_lm import CausalLM


def source_of(path: Path) -> ModelSource:
    return resolve_source(EngineConfig(model=str(path)), print)


def load(path: Path, dtype: torch.dtype = torch.float32) -> CausalLM:
    source = source_of(path)
    return load_model(
        source,
        read_model_config(source),
        EngineConfig(model=str(path)),
        ops=select_ops("cpu"),
        device=torch.device("cpu"),
        dtype=dtype,
        progress=print,
    )


def logits(model: CausalLM) -> torch.Tensor:
    ids = torch.randint(
        0, model.config.vocab_size, (90,), generator=torch.Generator().manual_seed(2)
    )
    (found,) = Rows(model, 1).step([ids.tolist()])
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama2", "llama3", "qwen2", "qwen3", "smollm2"])
def test_a_gguf_file_is_the_model_it_was_made_from(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / "hf")
    if family == "qwen2":  # the format has no windows for it
        change_config(folder, use_sliding_window=False, layer_types=None)
    path = write_gguf(folder, tmp_path / "model.gguf")
    ours, theirs = read_model_config(source_of(path)), read_model_config(source_of(folder))
    if family != "llama3":  # there the scaling travels as a tensor
        assert replace(ours, norm_eps=0.0) == replace(theirs, norm_eps=0.0)
    assert ours.norm_eps == pytest.approx(theirs.norm_eps)
    torch.testing.assert_close(logits(load(path)), logits(load(folder)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1, Kind.F16, Kind.BF16])
def test_packed_weights_are_what_the_codec_says(kind: Kind, tmp_path: Path) -> None:
    folder = make_tiny("smollm2", tmp_path / "hf")
    path = write_gguf(folder, tmp_path / "model.gguf", kind=kind)
    config = read_model_config(source_of(path))
    assert config.dtype == ("float16" if kind == Kind.F16 else "bfloat16")
    plain = write_gguf(folder, tmp_path / "plain.gguf")
    exact = {t.name: t.read() for t in stored_gguf_tensors(read_gguf(plain), config)}
    for tensor in stored_gguf_tensors(read_gguf(path), config):
        if len(tensor.shape) != 2:
            continue
        whole = exact[tensor.name].numpy()
        expected = gguf.dequantize(gguf.quantize(whole, kind), kind)
        np.testing.assert_array_equal(tensor.read().numpy(), expected)


def test_tokenizer_and_defaults_of_a_gguf_file(tmp_path: Path) -> None:
    folder = make_tiny("llama2", tmp_path / "hf")
    source = source_of(write_gguf(folder, tmp_path / "model.gguf"))
    original = load_tokenizer(source_of(folder), None, False)
    ours = load_tokenizer(source, None, False)
    text = "The capital of France <|im_start|>is\n Paris, 1234 été 日本!"
    assert ours.encode(text) == original.encode(text)
    assert ours.decode(ours.encode(text)) == text
    chat = [{"role": "user", "content": "Hello"}]
    assert ours.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=False
    ) == original.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert (ours.eos_token, ours.bos_token) == ("<|im_end|>", "<|im_start|>")
    assert ours.decode([2, 1], skip_special_tokens=True) == ""
    assert read_generation_defaults(source, "auto").eos_token_ids == [2, 0]
    assert load_tokenizer(source, str(folder), False).encode(text) == original.encode(text)


@pytest.mark.skipif(not SMOLLM2.exists(), reason=f"{SMOLLM2.name} was not fetched (make demo does)")
class TestSmolLM2:
    def test_config_and_defaults(self) -> None:
        source = source_of(SMOLLM2)
        config = read_model_config(source)
        assert (config.num_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
        assert (config.num_heads, config.num_kv_heads, config.head_size) == (9, 3, 64)
        assert config.max_position == 8192
        assert config.tie_word_embeddings
        assert config.rope is not None
        assert config.rope.theta == 100000.0
        assert read_generation_defaults(source, "auto").eos_token_ids == [2]

    def test_logits_are_those_of_transformers(self) -> None:
        ids = load_tokenizer(source_of(SMOLLM2), None, False).encode("The capital of France is")
        with torch.inference_mode():
            expected = transformers_twin(SMOLLM2)(torch.tensor([ids])).logits[0]
        (got,) = Rows(load(SMOLLM2), 1).step([ids])
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)

    def test_it_knows_the_capital_of_france(self) -> None:
        tokenizer = load_tokenizer(source_of(SMOLLM2), None, False)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "What is the capital of France?"}],
            add_generation_prompt=True,
            tokenize=False,
        )
        assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
        ids = tokenizer.encode(prompt, add_special_tokens=False)
        rows = Rows(load(SMOLLM2, torch.bfloat16), 1, torch.bfloat16)
        said: list[int] = []
        while len(said) < 12 and 2 not in said:
            (found,) = rows.step([said[-1:] or ids])
            said.append(int(found[-1].argmax()))
        assert "Paris" in tokenizer.decode(said)

    def test_digits_are_single_tokens(self) -> None:
        tokenizer = load_tokenizer(source_of(SMOLLM2), None, False)
        assert tokenizer.tokenize("in 1234") == ["in", "Ġ", "1", "2", "3", "4"]
        assert tokenizer.eos_token_id == 2
        assert tokenizer.encode("<|im_end|>") == [2]


def test_truncated_files(tmp_path: Path) -> None:
    path = write_gguf(make_tiny("llama2", tmp_path / "hf"), tmp_path / "model.gguf")
    whole = path.read_bytes()
    for size in (0, 10, 30, 1000, read_gguf(path).data_offset // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptModel, match=r"model\.gguf"):
            read_model_config(source_of(path))
    path.write_bytes(whole[:-5000])
    with pytest.raises(CorruptModel, match="incomplete: tensor"):
        load(path)
    path.write_bytes(b"PK\x03\x04" + whole[4:])
    with pytest.raises(CorruptModel, match="not a GGUF file"):
        read_model_config(source_of(path))
    path.write_bytes(whole[:8] + b"\xff" * 8 + whole[16:])
    with pytest.raises(CorruptModel, match="a count of"):
        read_model_config(source_of(path))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.architecture": "mamba"}, "'mamba' model"),
        ({"split.count": 2}, "one part of a split file"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.attention.head_count": [4, 4, 2]}, "differs between layers"),
        ({"llama.rope.dimension_count": 8, "llama.attention.key_length": 16}, "part of each head"),
    ],
)
def test_unsupported_files(metadata: dict[str, Any], words: str, tmp_path: Path) -> None:
    from octavo_server.loading.gguf_config import gguf_model_config

    path = write_gguf(make_tiny("llama2", tmp_path / "hf"), tmp_path / "model.gguf")
    file = read_gguf(path)
    with pytest.raises(UnsupportedModel, match=words):
        gguf_model_config(replace(file, metadata=file.metadata | metadata))


@pytest.mark.parametrize(
    ("metadata", "error", "words"),
    [
        ({"tokenizer.ggml.model": "t5"}, UnsupportedModel, "kind 't5'"),
        ({"tokenizer.ggml.pre": "viking"}, UnsupportedModel, "'viking' way"),
        ({"tokenizer.ggml.tokens": None}, CorruptModel, "no tokenizer"),
        ({"tokenizer.ggml.merges": None}, CorruptModel, "no merges"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, CorruptModel, "eos token 1000000"),
    ],
)
def test_unknown_tokenizers(
    metadata: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    from octavo_server.loading.gguf_tokenizer import build_tokenizer

    path = write_gguf(make_tiny("llama2", tmp_path / "hf"), tmp_path / "model.gguf")
    file = read_gguf(path)
    with pytest.raises(error, match=words):
        build_tokenizer(replace(file, metadata=file.metadata | metadata))


def test_sentencepiece_vocabularies(tmp_path: Path) -> None:
    """Llama 2's kind: merges follow from scores, unknown characters become bytes."""
    from octavo_server.loading.gguf_tokenizer import build_tokenizer

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["▁", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello", "▁h"]
    path = write_gguf(make_tiny("llama2", tmp_path / "hf"), tmp_path / "model.gguf")
    file = read_gguf(path)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces + words,
        "tokenizer.ggml.scores": [0.0] * len(pieces) + [-float(n) for n in range(len(words))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": None,
    }
    tokenizer = build_tokenizer(replace(file, metadata=metadata))
    ids = tokenizer.encode("hello é")
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁hello", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello é"
