"""Manifest files, as `octavo render` and `octavo up` are given them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from octavo_operator.names import KIND
from octavo_operator.spec import InferenceService, InvalidSpec, parse


class UnreadableManifest(ValueError):
    """A file is missing, is no YAML, or holds an invalid InferenceService; the message names it."""


def read_documents(files: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, document) for each YAML document; "-" is standard input, a folder means its *.yaml."""
    for name in files:
        path = Path(name)
        parts = sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) if path.is_dir() else [path]
        for part in parts:
            try:
                text = sys.stdin.read() if name == "-" else part.read_text(encoding="utf-8")
                documents = [each for each in yaml.safe_load_all(text) if each is not None]
            except (OSError, UnicodeDecodeError) as error:
                raise UnreadableManifest(f"{part}: {error}") from None
            except yaml.YAMLError as error:
                raise UnreadableManifest(f"{part}: is not YAML: {error}") from None
            for document in documents:
                if not isinstance(document, dict):
                    raise UnreadableManifest(
                        f"{part}: holds a {type(document).__name__}, not an object"
                    )
                items = document["items"] if document.get("kind") == "List" else [document]
                for item in items:
                    yield str(part), item


def read_services(files: Iterable[str]) -> list[InferenceService]:
    """The InferenceServices in the files; UnreadableManifest for the first mistake."""
    services = []
    for file, document in read_documents(files):
        if document.get("kind") != KIND:
            continue
        try:
            services.append(parse(document))
        except InvalidSpec as error:
            metadata = document.get("metadata")
            name = metadata.get("name", "?") if isinstance(metadata, dict) else "?"
            raise UnreadableManifest(f"{file}: InferenceService {name}: {error}") from None
    return services
