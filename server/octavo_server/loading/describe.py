"""What a model says about itself: its config, and its defaults for generation. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo_server.errors import CorruptModel, InvalidRequest, InvalidSettings
from octavo_server.loading.damage import damage_in
from octavo_server.loading.gguf_config import gguf_model_config
from octavo_server.loading.gguf_file import read_gguf
from octavo_server.loading.json_file import read_json
from octavo_server.loading.source import ModelSource
from octavo_server.model_config import ModelConfig, parse_config
from octavo_server.sampling_params import SamplingParams

_NUMBERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")
_GGUF_EOS = (
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
)
_GGUF_NUMBERS = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What a request gets where it says nothing; None: the API's own default."""

    eos_token_ids: list[int] = field(default_factory=list)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


def read_model_config(source: ModelSource) -> ModelConfig:
    """Raises UnsupportedModel or CorruptModel."""
    if source.kind == "gguf":
        return gguf_model_config(read_gguf(source.path))
    return parse_config(read_json(source.path / "config.json"))


def read_generation_defaults(source: ModelSource, generation_config: str) -> GenerationDefaults:
    """`generation_config`: "auto" (the model's own), "vllm" (neutral sampling), or a folder.

    EOS ids are facts about the model, not taste: they are kept with "vllm" too, and come from
    generation_config.json or else config.json, with the tokenizer's own added. Ids that the model
    has no logits for are left out. Raises CorruptModel for values that no request may have.
    """
    with damage_in(f"the generation config of {source.name}"):
        return _read_defaults(source, generation_config)


def _read_defaults(source: ModelSource, generation_config: str) -> GenerationDefaults:
    own = _from_gguf(source.path) if source.kind == "gguf" else _from_folder(source.path)
    if generation_config == "auto":
        return _defaults(own.numbers, own.known(own.eos_token_ids))
    if generation_config == "vllm":
        return GenerationDefaults(eos_token_ids=own.known(own.eos_token_ids))
    folder = Path(generation_config).expanduser()
    if not (folder / "generation_config.json").is_file():
        raise InvalidSettings(
            f"--generation-config {generation_config}: give auto, vllm or a folder that has a "
            "generation_config.json"
        )
    given = read_json(folder / "generation_config.json")
    ids = own.known(_ids(given.get("eos_token_id"))) or own.known(own.eos_token_ids)
    return _defaults(given, ids)


@dataclass(frozen=True, slots=True)
class _Own:
    """What the model's own files say, unchecked; `vocab_size` None: they do not say."""

    numbers: Mapping[str, Any]
    eos_token_ids: list[int]
    vocab_size: int | None

    def known(self, ids: list[int]) -> list[int]:
        """Each id once, without those that the model has no logits for."""
        limit = math.inf if self.vocab_size is None else self.vocab_size
        return [number for number in dict.fromkeys(ids) if 0 <= number < limit]


def _from_folder(folder: Path) -> _Own:
    path = folder / "generation_config.json"
    given = read_json(path) if path.is_file() else {}
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    ids = _ids(given.get("eos_token_id")) or _ids(config.get("eos_token_id"))
    vocab_size = config.get("vocab_size")
    return _Own(
        given, ids + _tokenizer_eos(folder), vocab_size if isinstance(vocab_size, int) else None
    )


def _tokenizer_eos(folder: Path) -> list[int]:
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    token = config.get("eos_token")
    text = token.get("content") if isinstance(token, Mapping) else token
    added = config.get("added_tokens_decoder")
    if not isinstance(text, str) or not isinstance(added, Mapping):
        return []
    return [int(number) for number, entry in added.items() if entry.get("content") == text]


def _from_gguf(path: Path) -> _Own:
    file = read_gguf(path)
    metadata, table = file.metadata, file.tensors.get("token_embd.weight")
    ids = [int(metadata[key]) for key in _GGUF_EOS if metadata.get(key) is not None]
    numbers = {name: metadata.get(key) for name, key in _GGUF_NUMBERS.items()}
    return _Own(numbers, ids, table.shape[0] if table else None)


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    ids = value if isinstance(value, list) else [value]
    if any(isinstance(number, bool) or not isinstance(number, int) for number in ids):
        raise CorruptModel(f"the model's config has eos_token_id {value!r}")
    return ids


def _defaults(given: Mapping[str, Any], eos_token_ids: list[int]) -> GenerationDefaults:
    numbers: dict[str, Any] = {}
    for name in _NUMBERS:
        value = given.get(name)
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise CorruptModel(f"the model's generation config has {name} {value!r}, not a number")
        numbers[name] = int(value) if name in ("top_k", "max_new_tokens") else float(value)
    _check(numbers)
    return GenerationDefaults(eos_token_ids=eos_token_ids, **numbers)


def _check(numbers: dict[str, Any]) -> None:
    """Defaults that no request may have would make each request that is silent a client's error."""
    params = {name: value for name, value in numbers.items() if name != "max_new_tokens"}
    try:
        SamplingParams(**params, max_tokens=numbers.get("max_new_tokens")).validate(vocab_size=1)
    except InvalidRequest as error:
        raise CorruptModel(
            f"the model's generation config cannot be used: {error}; serve without it "
            "(--generation-config vllm)"
        ) from error
