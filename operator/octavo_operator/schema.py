"""The CRD's structural schema, applied to a manifest without an API server.

`octavo render` and `octavo up` find a wrong field with this as the API server would, path and all.
CEL rules are not run here; `spec.parse` repeats them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

Problem = tuple[str, str]
"""(path of the field, what is wrong with it)"""

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


@functools.cache
def load_crd() -> Mapping[str, Any]:
    """The CustomResourceDefinition: beside this file in a wheel, in crds/ in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "crds", here.parents[1] / "crds"):
        path = folder / "inferenceservice.yaml"
        if path.exists():
            crd: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
            return crd
    raise FileNotFoundError("crds/inferenceservice.yaml is missing from this installation")


def object_schema() -> Mapping[str, Any]:
    """The openAPIV3Schema of the one version."""
    result: Mapping[str, Any] = load_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return result


def problems(manifest: Mapping[str, Any]) -> Iterator[Problem]:
    """What the API server's strict validation would refuse, in the order of the schema's fields."""
    if not isinstance(manifest.get("metadata"), dict):
        yield "metadata", "is required"
        return
    for key in manifest:
        if key not in object_schema()["properties"]:
            yield str(key), "unknown field"
    if "spec" not in manifest:
        yield "spec", "is required"
    else:
        yield from check(object_schema()["properties"]["spec"], manifest["spec"], "spec")


def without_nulls(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A null in a field that the schema knows is as good as absent; the API server drops it too.

    Those in podTemplate's unknown fields stay: there they remove what the operator renders.
    """
    result: dict[str, Any] = {key: value for key, value in manifest.items() if value is not None}
    if isinstance(metadata := result.get("metadata"), dict):
        result["metadata"] = {key: each for key, each in metadata.items() if each is not None}
    if "spec" in result:
        result["spec"] = _prune(object_schema()["properties"]["spec"], result["spec"])
    return result


def _prune(schema: Mapping[str, Any], value: Any) -> Any:
    if isinstance(value, list) and "items" in schema:
        return [_prune(schema["items"], each) for each in value]
    if not isinstance(value, dict):
        return value
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    result = {}
    for key, each in value.items():
        inner = known.get(key, others)
        if not inner:
            result[key] = each
        elif each is not None:
            result[key] = _prune(inner, each)
    return result


def check(schema: Mapping[str, Any], value: Any, path: str) -> Iterator[Problem]:
    """`value`, which stands at `path`, against an OpenAPI schema as CRDs have it."""
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield path, f"must be an integer or a string, not {_kind(value)}"
        else:
            for where, problem in _check_text(schema, str(value), path):
                yield where, f"{problem}; write a quantity such as 256Mi"
        return
    expected = schema["type"]
    wrong_bool = isinstance(value, bool) and expected in ("integer", "number")
    if wrong_bool or not isinstance(value, _TYPES[expected]):
        yield path, f"must be of type {expected}, not {_kind(value)}"
        return
    if "enum" in schema and value not in schema["enum"]:
        allowed = ", ".join(str(each) for each in schema["enum"])
        yield path, f"{value!r} is not one of {allowed}"
    if isinstance(value, str):
        yield from _check_text(schema, value, path)
    elif isinstance(value, dict):
        yield from _check_object(schema, value, path)
    elif isinstance(value, list):
        yield from _check_list(schema, value, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if value < schema.get("minimum", value):
            yield path, f"{value} is less than {schema['minimum']}"
        if value > schema.get("maximum", value):
            yield path, f"{value} is more than {schema['maximum']}"


def _check_text(schema: Mapping[str, Any], value: str, path: str) -> Iterator[Problem]:
    if len(value) < schema.get("minLength", 0):
        yield path, f"must have at least {schema['minLength']} characters"
    if len(value) > schema.get("maxLength", len(value)):
        yield path, f"must have at most {schema['maxLength']} characters"
    if "pattern" in schema and not _matches(schema["pattern"], value):
        yield path, f"{value!r} does not match {schema['pattern']}"


def _matches(pattern: str, value: str) -> bool:
    """As in Go, where $ is the very end; Python's would let a newline follow."""
    return re.search(re.sub(r"(?<!\\)\$$", r"\\Z", pattern), value) is not None


def _check_object(schema: Mapping[str, Any], value: dict[str, Any], path: str) -> Iterator[Problem]:
    known = schema.get("properties", {})
    others = schema.get("additionalProperties")
    for key in schema.get("required", ()):
        if value.get(key) is None:
            yield f"{path}.{key}", "is required"
    if len(value) > schema.get("maxProperties", len(value)):
        yield path, f"must have at most {schema['maxProperties']} entries"
    for key, each in value.items():
        if key in known:
            if each is not None:  # as good as absent
                yield from check(known[key], each, f"{path}.{key}")
        elif others:
            yield from check(others, each, f"{path}.{key}")
        elif not schema.get("x-kubernetes-preserve-unknown-fields"):
            yield f"{path}.{key}", "unknown field"


def _check_list(schema: Mapping[str, Any], value: list[Any], path: str) -> Iterator[Problem]:
    if len(value) > schema.get("maxItems", len(value)):
        yield path, f"must have at most {schema['maxItems']} items"
    keys = schema.get("x-kubernetes-list-map-keys")
    seen: list[Any] = []
    for index, each in enumerate(value):
        yield from check(schema["items"], each, f"{path}[{index}]")
        identity = [each.get(key) for key in keys] if keys and isinstance(each, dict) else each
        if (keys or schema.get("x-kubernetes-list-type") == "set") and identity in seen:
            yield f"{path}[{index}]", "is there twice"
        seen.append(identity)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    return next(
        (name for name, kind in _TYPES.items() if isinstance(value, kind)), str(type(value))
    )
