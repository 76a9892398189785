"""Who asks: the API server's front proxy, by its certificate, and the user that it names. Pure.

The ConfigMap kube-system/extension-apiserver-authentication says which CA and which names its
certificate has, and in which headers the user stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

NAMESPACE, CONFIG_MAP = "kube-system", "extension-apiserver-authentication"


class NoFrontProxy(Exception):
    """The API server has none: nothing that it sends could be believed."""


@dataclass(frozen=True, slots=True)
class FrontProxy:
    """`authority`: PEM. `names`: common names of the certificate, none for any. Headers in lower
    case, `extra` as prefixes.
    """

    authority: str
    names: tuple[str, ...]
    user: tuple[str, ...]
    uid: tuple[str, ...]
    group: tuple[str, ...]
    extra: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class User:
    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = field(default=())


def read_front_proxy(config_map: Mapping[str, Any] | None) -> FrontProxy:
    """NoFrontProxy where it is not there, or says nothing of one."""
    data = (config_map or {}).get("data") or {}
    authority = str(data.get("requestheader-client-ca-file") or "")
    found = FrontProxy(
        authority=authority,
        names=_listed(data, "allowed-names"),
        user=_headers(data, "username-headers"),
        uid=_headers(data, "uid-headers"),
        group=_headers(data, "group-headers"),
        extra=_headers(data, "extra-headers-prefix"),
    )
    if not authority or not found.user:
        raise NoFrontProxy(
            f"the ConfigMap {NAMESPACE}/{CONFIG_MAP} names no front proxy: the API server needs "
            "its --requestheader flags for the aggregation layer"
        )
    return found


def is_front_proxy(proxy: FrontProxy, certificate: Mapping[str, Any] | None) -> bool:
    """Of a certificate that the CA signed, as `getpeercert` gives it; None or {}: there is none."""
    if not certificate:
        return False
    subject = {key: value for part in certificate.get("subject", ()) for key, value in part}
    return not proxy.names or subject.get("commonName") in proxy.names


def read_user(proxy: FrontProxy, headers: Iterable[tuple[str, str]]) -> User | None:
    """Whom the headers name; None for nobody. Only after `is_front_proxy`."""
    found = [(key.lower(), value) for key, value in headers]
    name = _first(found, proxy.user)
    if not name:
        return None
    extra: dict[str, list[str]] = {}
    for key, value in found:
        for prefix in proxy.extra:
            if key.startswith(prefix):
                extra.setdefault(unquote(key.removeprefix(prefix)), []).append(value)
    return User(
        name=name,
        uid=_first(found, proxy.uid),
        groups=tuple(value for key, value in found if key in proxy.group),
        extra=tuple(sorted((key, tuple(values)) for key, values in extra.items())),
    )


def _first(found: list[tuple[str, str]], wanted: tuple[str, ...]) -> str:
    return next((value for each in wanted for key, value in found if key == each), "")


def _headers(data: Mapping[str, Any], what: str) -> tuple[str, ...]:
    return tuple(each.lower() for each in _listed(data, what))


def _listed(data: Mapping[str, Any], what: str) -> tuple[str, ...]:
    """A JSON list of texts; whatever is none is NoFrontProxy: it may be a rule we would loosen."""
    text = data.get(f"requestheader-{what}")
    if not text:
        return ()
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise NoFrontProxy(f"requestheader-{what} of {NAMESPACE}/{CONFIG_MAP} is no list of names")
    return tuple(found)
