"""Manifest files, as `octavo render` and `octavo up` are given them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from octavo_operator.names import GPU_RESOURCE, GROUP, KIND
from octavo_operator.spec import InferenceService, InvalidSpec, parse

MAX_DEPTH = 100
MAX_VALUES = 1_000_000
_JSON_TAGS = {"null", "bool", "int", "float", "str", "seq", "map"}


class UnreadableManifest(ValueError):
    """A file is missing, is no YAML, or holds an invalid object; the message is a line with its
    name."""


class _Loader(yaml.SafeLoader):
    """YAML with JSON's types, as kubectl reads it: a date is text, keys are text."""

    yaml_implicit_resolvers = {
        first: [each for each in resolvers if each[0] != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in _JSON_TAGS
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        values = super().construct_mapping(node, deep=deep)
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value} is not text; quote it",
                    key_node.start_mark,
                )  # fmt: skip
        return values


def read_documents(files: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, object) for each one in the files, those of Lists singly.

    "-" is standard input, a folder means its *.yaml. Raises UnreadableManifest.
    """
    for name in files:
        path = Path(name)
        parts = sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) if path.is_dir() else [path]
        for part in parts:
            for document in _load(name, part):
                yield from ((str(part), item) for item in _objects(str(part), document))


def _load(name: str, path: Path) -> list[Any]:
    """The file's documents, made of JSON's types and of bounded depth."""
    try:
        text = sys.stdin.read() if name == "-" else path.read_text(encoding="utf-8")
        documents = list(yaml.load_all(text, _Loader))
    except OSError as error:
        raise UnreadableManifest(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UnreadableManifest(f"{path}: is not UTF-8: {error}") from None
    except yaml.YAMLError as error:
        raise UnreadableManifest(f"{path}: is not YAML: {_sentence(error)}") from None
    except RecursionError:
        raise UnreadableManifest(f"{path}: nests too deep") from None
    except ValueError as error:  # a number that Python cannot read
        raise UnreadableManifest(f"{path}: is not YAML: {error}") from None
    _check_size(path, documents)
    return [each for each in documents if each is not None]


def _sentence(error: yaml.YAMLError) -> str:
    """YAML's message in one line, with the place."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {' '.join(problem.split())}"


def _check_size(path: Path, documents: list[Any]) -> None:
    """Aliases can make a small file huge, or a value contain itself."""
    stack: list[tuple[Any, int]] = [(documents, 0)]
    values = 0
    while stack:
        value, depth = stack.pop()
        values += 1
        if depth > MAX_DEPTH:
            raise UnreadableManifest(f"{path}: nests too deep")
        if values > MAX_VALUES:
            raise UnreadableManifest(f"{path}: holds more than {MAX_VALUES:,} values")
        if isinstance(value, dict):
            stack += [(each, depth + 1) for each in value.values()]
        elif isinstance(value, list):
            stack += [(each, depth + 1) for each in value]


def _objects(file: str, document: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(document, dict):
        raise UnreadableManifest(f"{file}: holds a {type(document).__name__}, not an object")
    if document.get("kind") != "List":
        yield document
        return
    items = document.get("items")
    if not isinstance(items, list):
        raise UnreadableManifest(f"{file}: List: items: must be of type array")
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise UnreadableManifest(f"{file}: List: items[{index}]: must be of type object")
        yield item


def describe(document: Mapping[str, Any]) -> str:
    """Kind and name for a message; the document may be any mapping."""
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f"{document.get('kind', 'object')} {name if isinstance(name, str) else '?'}"


def check_kind(file: str, document: Mapping[str, Any]) -> None:
    """Raise UnreadableManifest for an object of our group with a kind that it does not have."""
    version, kind = document.get("apiVersion"), document.get("kind")
    if isinstance(version, str) and version.startswith(f"{GROUP}/") and kind != KIND:
        raise UnreadableManifest(
            f"{file}: {describe(document)}: {version} has no kind {kind!r}; write {KIND}"
        )


def read_services(files: Iterable[str], gpu_resource: str = GPU_RESOURCE) -> list[InferenceService]:
    """The InferenceServices in the files; UnreadableManifest for the first mistake."""
    services = []
    for file, document in read_documents(files):
        check_kind(file, document)
        if document.get("kind") != KIND:
            continue
        try:
            services.append(parse(document, gpu_resource=gpu_resource))
        except InvalidSpec as error:
            raise UnreadableManifest(f"{file}: {describe(document)}: {error}") from None
    return services
