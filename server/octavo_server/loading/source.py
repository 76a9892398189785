"""Where a model's files are: a folder, a .gguf file, or a repository of the Hub. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from octavo_server.config import EngineConfig
from octavo_server.errors import ModelNotFound, UnsupportedModel
from octavo_server.loading.meter import Meter

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


@dataclass(frozen=True)
class ModelSource:
    """`path` is a folder with config.json, or a .gguf file; `name` is what the user called it.

    `revision` is the commit of a Hub snapshot, None otherwise.
    """

    kind: Literal["folder", "gguf"]
    path: Path
    revision: str | None
    name: str


def resolve_source(
    config: EngineConfig, progress: Callable[[str], None], meter: Meter | None = None
) -> ModelSource:
    """Find the files, downloading them if `config.model` is a Hub id; `meter` counts their bytes.

    Raises ModelNotFound, GatedModel, HubUnreachable, UnsupportedModel or CorruptModel.
    """
    path = Path(config.model).expanduser()
    if path.is_file():
        return _file(config.model, path)
    if path.is_dir():
        return _folder(config.model, path)
    if config.model.startswith(("/", "./", "../", "~")) or config.model.endswith(".gguf"):
        raise ModelNotFound(f"there is no file or folder {config.model}")
    if not is_hub_id(config.model):
        raise ModelNotFound(
            f"{config.model!r} is neither a folder, nor a .gguf file, nor a Hub id (ORG/NAME)"
        )
    from octavo_server.loading.hub import fetch_snapshot

    folder = fetch_snapshot(config, progress, meter)
    return ModelSource("folder", folder, folder.name, config.model)


def is_hub_id(name: str) -> bool:
    """Whether the Hub could have a repository of this name."""
    return bool(_HUB_ID.fullmatch(name)) and ".." not in name and "--" not in name


def _file(name: str, path: Path) -> ModelSource:
    if path.suffix != ".gguf":
        hint = f"; give its folder {path.parent}" if path.suffix == ".safetensors" else ""
        raise UnsupportedModel(f"{name} is a file but not a .gguf file{hint}")
    return ModelSource("gguf", path.resolve(), None, name)


def _folder(name: str, path: Path) -> ModelSource:
    if (path / "config.json").is_file():
        return ModelSource("folder", path.resolve(), None, name)
    files = sorted(found.name for found in path.glob("*.gguf"))
    if files:
        raise ModelNotFound(f"folder {name} has no config.json; did you mean {path / files[0]}?")
    below = sorted(found.parent.name for found in path.glob("*/config.json"))
    if below:
        raise ModelNotFound(f"folder {name} has no config.json; did you mean {path / below[0]}?")
    holds = "is empty" if not any(path.iterdir()) else "has no config.json"
    raise ModelNotFound(f"folder {name} {holds}: it holds no model")
