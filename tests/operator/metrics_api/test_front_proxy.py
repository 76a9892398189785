"""Whom a request comes from."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo_operator.metrics_api.front_proxy import (
    NoFrontProxy,
    User,
    is_front_proxy,
    read_front_proxy,
    read_user,
)

DATA = {
    "requestheader-client-ca-file": "PEM",
    "requestheader-allowed-names": '["front-proxy-client"]',
    "requestheader-username-headers": '["X-Remote-User"]',
    "requestheader-uid-headers": '["X-Remote-Uid"]',
    "requestheader-group-headers": '["X-Remote-Group"]',
    "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
}


def proxy(**changes: Any) -> Any:
    found = {**DATA, **{f"requestheader-{key}": value for key, value in changes.items()}}
    return read_front_proxy({"data": found})


def certificate(name: str) -> dict[str, Any]:
    return {"subject": ((("organizationName", "x"),), (("commonName", name),))}


@pytest.mark.parametrize(
    "config_map",
    [
        None,
        {},
        {"data": {}},
        {"data": {key: value for key, value in DATA.items() if "ca-file" not in key}},
        {"data": {key: value for key, value in DATA.items() if "username" not in key}},
        {"data": {**DATA, "requestheader-allowed-names": "anybody"}},
        {"data": {**DATA, "requestheader-allowed-names": "{}"}},
        {"data": {**DATA, "requestheader-allowed-names": "[1]"}},
    ],
)
def test_without_one_nothing_is_believed(config_map: Any) -> None:
    with pytest.raises(NoFrontProxy):
        read_front_proxy(config_map)


def test_its_certificate_has_one_of_the_names() -> None:
    assert is_front_proxy(proxy(), certificate("front-proxy-client"))
    assert not is_front_proxy(proxy(), certificate("somebody"))
    assert not is_front_proxy(proxy(), {})
    assert not is_front_proxy(proxy(), None)
    # No names: the CA signs for nobody else.
    anybody = proxy(**{"allowed-names": "[]"})
    assert is_front_proxy(anybody, certificate("somebody"))
    assert not is_front_proxy(anybody, None)


def test_the_user_that_it_names() -> None:
    headers = [
        ("x-remote-user", "jane"),
        ("X-Remote-Uid", "u-1"),
        ("X-Remote-Group", "a"),
        ("X-Remote-Group", "b"),
        ("X-Remote-Extra-Acme.com%2Fproject", "p"),
        ("X-Remote-Extra-acme.com%2Fproject", "q"),
        ("X-Other", "no"),
    ]
    assert read_user(proxy(), headers) == User(
        "jane", "u-1", ("a", "b"), (("acme.com/project", ("p", "q")),)
    )
    assert read_user(proxy(), headers[1:]) is None


def test_headers_of_other_names_are_none() -> None:
    other = proxy(**{"username-headers": json.dumps(["X-Front-User"])})
    assert read_user(other, [("X-Remote-User", "root")]) is None
