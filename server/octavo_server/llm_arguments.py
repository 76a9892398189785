"""What callers of the offline entry give it, as checked values: settings, prompts, conversations.

The command line checks flags and the API bodies; here the same mistakes come as Python values.
"""

from __future__ import annotations

import difflib
import operator
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import msgspec

from octavo_server.config import EngineConfig
from octavo_server.errors import InvalidRequest, InvalidSettings
from octavo_server.sampling_params import SamplingParams

Conversation = list[dict[str, Any]]
"""Messages, `role` and `content` both text."""

_WHERE = re.compile(r"(.*) - at `\$\.?(.*)`")

_LEAST = {
    "tensor_parallel_size": 1,
    "collective_timeout": 1,
    "block_size": 1,
    "max_num_seqs": 1,
    "max_num_batched_tokens": 1,
    "kv_cache_memory_bytes": 1,
    "num_gpu_blocks_override": 2,
}


def checked_config(model: str | os.PathLike[str], settings: Mapping[str, Any]) -> EngineConfig:
    """The settings of an `LLM`, of the right names, types and ranges; else `InvalidSettings`.

    Sizes may be written as on the command line: "1GiB".
    """
    known = [name for name in EngineConfig.__dataclass_fields__ if name != "model"]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
            raise InvalidSettings(f"LLM takes no {name}; {hint}")
    values = dict(settings)
    size = values.get("kv_cache_memory_bytes")
    if isinstance(size, str):
        from octavo_server.api.sizes import parse_bytes  # late: imports click

        try:
            values["kv_cache_memory_bytes"] = parse_bytes(size)
        except ValueError as error:
            raise InvalidSettings(f"kv_cache_memory_bytes: {error}") from None
    try:
        config = msgspec.convert({"model": os.fspath(model), **values}, EngineConfig)
    except msgspec.ValidationError as error:
        raise InvalidSettings(_type_problem(error, values)) from None
    except TypeError:
        raise InvalidSettings(f"model must be a folder, file or Hub id, not {model!r}") from None
    for name, least in _LEAST.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise InvalidSettings(f"{name} must be at least {least}, not {value}")
    check_ranges(config)
    return config


def check_ranges(config: EngineConfig) -> None:
    """Raise `InvalidSettings` for what no flag's type excludes either."""
    if not 0.05 <= config.gpu_memory_utilization <= 0.98:
        raise InvalidSettings(
            f"--gpu-memory-utilization must be 0.05 to 0.98, not {config.gpu_memory_utilization}"
        )
    length = config.max_model_len
    if length is not None and length != -1 and length < 2:
        raise InvalidSettings(f"--max-model-len must be -1 or at least 2, not {length}")


def _type_problem(error: msgspec.ValidationError, values: Mapping[str, Any]) -> str:
    """msgspec's "Expected `int | null`, got `str` - at `$.max_model_len`", for people."""
    match = _WHERE.fullmatch(str(error))
    if match is None:
        return str(error)
    name = match[2]
    kind = get_type_hints(EngineConfig).get(name)
    if get_origin(kind) is Literal:
        return f"{name} must be one of {', '.join(get_args(kind))}, not {values.get(name)!r}"
    problem = match[1].replace("`", "").replace("null", "None")
    return f"{name}: {problem[:1].lower()}{problem[1:]}"


def checked_prompts(given: object) -> list[str | list[int]]:
    """Each prompt a text or its ids; `given` is one or a sequence of them.

    A prompt may also be vLLM's {"prompt": ...} or {"prompt_token_ids": ...}. Raises
    `InvalidRequest`.
    """
    if isinstance(given, (str, Mapping)):
        given = [given]
    if not isinstance(given, Sequence):
        raise InvalidRequest(
            f"prompts must be a text, token ids or a list of these, not {_kind(given)}", "prompt"
        )
    if given and hasattr(given[0], "__index__"):  # ids of one prompt
        given = [given]
    return [_prompt(each, index) for index, each in enumerate(given)]


def _prompt(given: object, index: int) -> str | list[int]:
    if isinstance(given, Mapping):
        given = given.get("prompt_token_ids", given.get("prompt"))
    if isinstance(given, str):
        return given
    if isinstance(given, Sequence):
        with suppress(TypeError):
            # A sum of ints alone is an int: a quarter of the time of a look at each.
            if type(given) is list and type(sum(given)) is int:
                return given
            return [operator.index(each) for each in given]  # those of numpy, too
    raise InvalidRequest(
        f'prompt {index} must be a text, a list of token ids, {{"prompt": text}} or '
        f'{{"prompt_token_ids": ids}}, not {_kind(given)}',
        "prompt",
    )


def _kind(given: object) -> str:
    if isinstance(given, (list, tuple)) and given:
        inside = sorted({type(each).__name__ for each in given})
        return f"a {type(given).__name__} of {', '.join(inside)}"
    return f"a {type(given).__name__}"


def checked_params(
    given: SamplingParams | Sequence[SamplingParams] | None, count: int, vocab_size: int
) -> list[SamplingParams]:
    """The parameters of each of `count` prompts, validated. Raises `InvalidRequest`."""
    each: list[SamplingParams]
    if isinstance(given, (list, tuple)):
        each = list(given)
        if len(each) != count:
            raise InvalidRequest(f"{count} prompts but {len(each)} sampling_params")
    else:
        each = [SamplingParams() if given is None else cast(SamplingParams, given)] * count
    distinct: list[object] = list({id(params): params for params in each}.values())
    for params in distinct:
        if not isinstance(params, SamplingParams):
            raise InvalidRequest(
                f"sampling_params must be SamplingParams, not {_kind(params)}", "sampling_params"
            )
        try:
            msgspec.convert(msgspec.structs.asdict(params), SamplingParams)
        except msgspec.ValidationError as error:
            match = _WHERE.fullmatch(str(error))
            text = f"{match[2]}: {match[1]}" if match else str(error)
            raise InvalidRequest(f"SamplingParams: {text.replace('`', '')}") from None
        params.validate(vocab_size=vocab_size)
    return each


def checked_conversations(given: object) -> list[Conversation]:
    """Lists of messages as chat templates want them; `given` is one conversation or several.

    Raises `InvalidRequest` for what /v1/chat/completions would refuse.
    """
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise InvalidRequest(
            f"messages must be a list of messages, or a list of such lists, not {_kind(given)}",
            "messages",
        )
    several = not isinstance(given[0], Mapping)
    return [_conversation(each) for each in (given if several else [given])]


def _conversation(given: object) -> Conversation:
    from pydantic import TypeAdapter, ValidationError

    from octavo_server.api.conversation import ChatMessage, message_dicts

    try:
        return message_dicts(TypeAdapter(list[ChatMessage]).validate_python(given))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in ("messages", *problem["loc"]))
        raise InvalidRequest(f"{where}: {problem['msg']}", "messages") from None
