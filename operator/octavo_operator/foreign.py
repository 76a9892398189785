"""What others changed of an object that we made, told by who owns its fields. Pure.

An edit by hand takes a field over from us (Kubernetes' managedFields); applying takes it back. So a
field that another owned before an apply, and we after it, was somebody's change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from octavo_operator import names

_TOLD = 5


Path = tuple[str, ...]


def describe_foreign_change(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> str:
    """One sentence; "" if nobody changed anything that we set.

    `before` is the live object as read, `after` as apply left it.
    """
    if before is None:
        return ""
    kept, now_ours = _ours(before), _ours(after)
    taken: dict[Path, str] = {}
    for entry in _entries(before):
        if not _is_ours(entry):
            for path in _paths(entry) & now_ours - kept:
                if _counts(path):
                    taken[path] = str(entry.get("manager"))
    if not taken:
        return ""
    fields = ", ".join(_readable(path) for path in sorted(taken)[:_TOLD])
    more = f" and {len(taken) - _TOLD} more" if len(taken) > _TOLD else ""
    who = " and ".join(sorted(set(taken.values())))
    return f"{after['kind']}: {fields}{more} changed by {who}; set back"


def _entries(live: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [
        each
        for each in live["metadata"].get("managedFields") or []
        if each.get("subresource") is None
    ]


def _is_ours(entry: Mapping[str, Any]) -> bool:
    return entry.get("manager") == names.FIELD_MANAGER and entry.get("operation") == "Apply"


def _ours(live: Mapping[str, Any]) -> set[Path]:
    return {path for each in _entries(live) if _is_ours(each) for path in _paths(each)}


def _paths(entry: Mapping[str, Any]) -> set[Path]:
    return set(_walk(entry.get("fieldsV1") or {}, ()))


def _walk(fields: Mapping[str, Any], path: Path) -> Iterator[Path]:
    """The leaves; "." stands for an object or item itself."""
    for key, inner in fields.items():
        if key == ".":
            continue
        if inner:
            yield from _walk(inner, (*path, key))
        else:
            yield (*path, key)


def _counts(path: Path) -> bool:
    """Not the annotations that are our own notes."""
    return path[0] == "f:spec" or path[:2] == ("f:metadata", "f:labels")


def _readable(path: Path) -> str:
    """("f:spec", "f:volumes", 'k:{"name":"shm"}', "f:name") -> spec.volumes[shm].name"""
    text = ""
    for step in path:
        kind, _, rest = step.partition(":")
        if kind == "k":
            keys = json.loads(rest)
            text += "[" + ",".join(str(value) for value in keys.values()) + "]"
        elif kind == "f":
            text += f".{rest}" if text else rest
        else:
            text += f"[{rest}]"
    return text
