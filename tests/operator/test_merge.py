"""A podTemplate over the rendered one."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.render.merge import merge


@pytest.mark.parametrize(
    ("base", "overlay", "expected"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": 1}, {"a": None}, {}),
        (
            {"preStop": {"sleep": {"seconds": 5}}, "p": {"httpGet": {"path": "/a"}, "x": 1}},
            {"preStop": {"exec": {"command": ["a"]}}, "p": {"tcpSocket": {"port": 1}}},
            {"preStop": {"exec": {"command": ["a"]}}, "p": {"tcpSocket": {"port": 1}, "x": 1}},
        ),
        (
            {"p": {"httpGet": {"path": "/a", "port": 1}}},
            {"p": {"httpGet": {"path": "/b"}, "periodSeconds": 3}},
            {"p": {"httpGet": {"path": "/b", "port": 1}, "periodSeconds": 3}},
        ),
        ({"args": ["x"]}, {"args": ["y"]}, {"args": ["y"]}),
        (
            {"containers": [{"name": "octavo", "image": "i"}]},
            {"containers": [{"name": "side"}, {"name": "octavo", "tty": True}]},
            {"containers": [{"name": "octavo", "image": "i", "tty": True}, {"name": "side"}]},
        ),
        (
            {"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]},
            {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
            {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
        ),
        (
            {"ports": [{"name": "http", "containerPort": 8000}]},
            {"ports": [{"containerPort": 8000, "hostPort": 80}, {"containerPort": 9}]},
            {
                "ports": [
                    {"name": "http", "containerPort": 8000, "hostPort": 80},
                    {"containerPort": 9},
                ]
            },
        ),
        (
            {"volumes": [{"name": "cache", "emptyDir": {}}]},
            {"volumes": [{"name": "cache", "hostPath": {"path": "/x"}}]},
            {"volumes": [{"name": "cache", "hostPath": {"path": "/x"}}]},
        ),
        (
            {"tolerations": [{"key": "gpu"}]},
            {"tolerations": [{"key": "gpu"}, {"key": "spot"}]},
            {"tolerations": [{"key": "gpu"}, {"key": "spot"}]},
        ),
        (
            {"volumeMounts": [{"name": "cache", "mountPath": "/cache"}]},
            {"volumeMounts": [{"name": "fast", "mountPath": "/cache"}]},
            {"volumeMounts": [{"name": "fast", "mountPath": "/cache"}]},
        ),
    ],
)
def test_merge(base: dict[str, Any], overlay: dict[str, Any], expected: dict[str, Any]) -> None:
    assert merge(base, overlay) == expected


def test_inputs_stay() -> None:
    base = {"env": [{"name": "A", "value": "1"}], "tolerations": [{"key": "x"}]}
    overlay = {"env": [{"name": "A", "value": "2"}], "tolerations": [{"key": "y"}]}
    merge(base, overlay)["env"][0]["value"] = "3"
    assert base == {"env": [{"name": "A", "value": "1"}], "tolerations": [{"key": "x"}]}
    assert overlay["env"] == [{"name": "A", "value": "2"}]


def test_ports_differ_by_protocol_too() -> None:
    base = {"ports": [{"containerPort": 9, "name": "a", "protocol": "TCP"}]}
    udp = {"containerPort": 9, "name": "b", "protocol": "UDP"}
    merged = merge(base, {"ports": [udp, {"containerPort": 9, "hostPort": 1}]})
    assert merged["ports"] == [{**base["ports"][0], "hostPort": 1}, udp]


@pytest.mark.parametrize("items", [["A=b", {"name": "B"}], [None, {"name": "B"}], [["x"], 1]])
@pytest.mark.parametrize("key", ["env", "volumes", "ports", "tolerations"])
def test_odd_items_are_the_api_servers_to_refuse(key: str, items: list[Any]) -> None:
    assert merge({key: [{"name": "A"}]}, {key: items})[key] == [{"name": "A"}, *items]
    assert merge({key: items}, {key: items})[key]
