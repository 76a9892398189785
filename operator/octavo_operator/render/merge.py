"""A user's podTemplate over the rendered one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "ports": "containerPort",  # and the protocol, which see `_identity`
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "hostAliases": "ip",
}
"""The lists that are merged item by item, and the field that tells items apart, as in kubectl."""

_ADDED = {"tolerations"}
"""The lists that a user's items are added to."""

_REPLACED_KEYS = {
    "env": ("value", "valueFrom"),  # an item has one of the two: the overlay's choice counts
}


_HANDLERS = {"exec", "httpGet", "tcpSocket", "grpc", "sleep"}
"""Of which a probe or a hook has one: the overlay's takes the place of ours."""


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`overlay` over `base`: objects by field, the lists above by key, the rest replaced.

    A null in the overlay removes the field. Items of the base come first and keep their order.
    """
    result = copy.deepcopy(dict(base))
    if any(overlay.get(each) is not None for each in _HANDLERS - set(base)):
        for each in _HANDLERS:
            result.pop(each, None)
    for key, value in overlay.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merge(result[key], value)
        elif isinstance(value, list) and isinstance(result.get(key), list) and key in _KEYS:
            result[key] = _merge_items(key, result[key], value)
        elif isinstance(value, list) and isinstance(result.get(key), list) and key in _ADDED:
            result[key] += [copy.deepcopy(each) for each in value if each not in result[key]]
        else:
            result[key] = copy.deepcopy(value)
    return result


def _merge_items(name: str, base: Sequence[Any], overlay: Sequence[Any]) -> list[Any]:
    exclusive = _REPLACED_KEYS.get(name, ())
    result = list(base)
    for item in overlay:
        identity = _identity(name, item)
        index = next(
            (
                at
                for at, each in enumerate(result)
                if identity is not None and _identity(name, each) == identity
            ),
            None,
        )
        if index is None:
            result.append(copy.deepcopy(item))
            continue
        before = result[index]
        if any(each in item for each in exclusive):
            before = {field: value for field, value in before.items() if field not in exclusive}
        # A volume has one source: another name means another volume, never half of each.
        result[index] = copy.deepcopy(item) if name == "volumes" else merge(before, item)
    return result


def _identity(name: str, item: Any) -> Any:
    """What tells an item from others; None if it has no key, or is a bare word or a null.

    Such an item is the API server's to refuse, with the path.
    """
    key = item.get(_KEYS[name]) if isinstance(item, Mapping) else None
    if key is None or name != "ports":
        return key
    return key, item.get("protocol") or "TCP"
