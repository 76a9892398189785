"""The settings that pods were rendered from, and what differs between two of them.

The Deployment carries them as JSON, so that the operator (after a restart too, or a newer one) can
say which field of the manifest made the pods roll.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from octavo_operator.spec import InferenceService, camel_case

_LONGEST_TEMPLATE = 32768
"""Characters. Annotations share 256 KiB; of a larger podTemplate only a hash is kept."""

_LONGEST_KEPT = 256
"""Characters of one value (of a variable, say); of a longer one only a hash is kept."""

_LONGEST_VALUE = 80

_SECRET_FLAG = re.compile(r"--[-a-z]*(key|token|secret|password)", re.IGNORECASE)

OPERATOR_CHANGED = "the operator renders pods differently than before"


def settings_text(service: InferenceService, image: str) -> str:
    """Canonical JSON of everything in the manifest that shapes a pod, and the image.

    Long texts stand there as their hashes.
    """
    spec = service.spec
    template: Any = spec.pod_template
    if len(canonical := _dump(template)) > _LONGEST_TEMPLATE:
        template = hashlib.sha256(canonical.encode()).hexdigest()
    engine = _shorten({**_plain(spec.engine), "image": image})
    engine.pop("version", None)  # it is in the image
    # What the operator alone reads shapes no pod.
    model = {key: value for key, value in _plain(spec.model).items() if key != "config"}
    settings = {
        "model": _shorten(model),
        "engine": engine,
        "resources": _plain(spec.resources),
        "cache": _plain(spec.cache),
        "drain": _plain(spec.drain),
        "apiKeySecretRef": _plain(spec.api_key_secret_ref) if spec.api_key_secret_ref else {},
        "podTemplate": template,
    }
    return _dump({key: value for key, value in settings.items() if value})


def explain_change(before: str | None, after: str) -> str:
    """Which fields differ and how ("spec.engine.maxModelLen: 2048 -> 1024"), the first five.

    Values of variables and of flags that look secret are not repeated. `before` None or not ours
    (an annotation that somebody removed) gives a general sentence.
    """
    try:
        kept = json.loads(before or "")
    except (ValueError, RecursionError):
        return OPERATOR_CHANGED
    if not isinstance(kept, dict):
        return OPERATOR_CHANGED
    old = _flatten(kept, "spec")
    new = _flatten(json.loads(after), "spec")
    changes = []
    for path in sorted({*old, *new}):
        if old.get(path) != new.get(path):
            changes.append(_describe(path, old.get(path), new.get(path)))
    order = dict(_orders(kept, "spec"))
    for path, two in _orders(json.loads(after), "spec"):
        one = order.get(path, two)
        if one != two and sorted(one) == sorted(two):
            changes.append(f"{path}: order changed")
    if not changes:
        return OPERATOR_CHANGED
    more = f"; and {len(changes) - 5} more" if len(changes) > 5 else ""
    return "; ".join(changes[:5]) + more


def _describe(path: str, old: Any, new: Any) -> str:
    variable = ".env[" in path and path.endswith(".value")
    if variable or _SECRET_FLAG.search(f"{old} {new}"):
        verb = "added" if old is None else "removed" if new is None else "changed"
        return f"{path}: {verb}"
    return f"{path}: {_show(old)} -> {_show(new)}"


def _show(value: Any) -> str:
    if value is None:
        return "(none)"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _flatten(value: Any, path: str) -> dict[str, Any]:
    """Leaves by path; named items of lists as path[name], other lists as one leaf."""
    if isinstance(value, Mapping):
        result: dict[str, Any] = {}
        for key, each in value.items():
            result |= _flatten(each, f"{path}.{key}")
        return result
    if _named(value):
        result = {}
        for each in value:
            rest = {key: inner for key, inner in each.items() if key != "name"}
            result |= _flatten(rest, f"{path}[{each['name']}]") or {f"{path}[{each['name']}]": ""}
        return result
    return {path: value}


def _named(value: Any) -> bool:
    """True for a list whose items have names."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, Mapping) and isinstance(each.get("name"), str) for each in value)
    )


def _orders(value: Any, path: str) -> Iterator[tuple[str, list[str]]]:
    """The names of each list of named items, in their order: $(NAME) of a variable looks back."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _orders(each, f"{path}.{key}")
    elif _named(value):
        yield path, [each["name"] for each in value]
        for each in value:
            yield from _orders(each, f"{path}[{each['name']}]")


def _shorten(value: Any) -> Any:
    """`value` with its long texts replaced by their hashes."""
    if isinstance(value, Mapping):
        return {key: _shorten(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shorten(each) for each in value]
    if isinstance(value, str) and len(value) > _LONGEST_KEPT:
        return f"sha256:{hashlib.sha256(value.encode()).hexdigest()[:16]}"
    return value


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as camelCase JSON values, without what is None or empty."""
    result: dict[str, Any] = {}
    for each in dataclasses.fields(value):
        inner = getattr(value, each.name)
        if dataclasses.is_dataclass(inner):
            inner = _plain(inner)
        if inner is not None and inner != () and inner != {}:
            result[camel_case(each.name)] = list(inner) if isinstance(inner, tuple) else inner
    return result


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
