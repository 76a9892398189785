"""Ports that somebody renumbered, in a Service and in a pod's containers."""

from __future__ import annotations

from typing import Any

from octavo_operator.ports import renumber

HTTP = {"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}
VERSION = {"op": "test", "path": "/metadata/resourceVersion", "value": "7"}


def service(*ports: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "Service", "metadata": {"resourceVersion": "7"}, "spec": {"ports": [*ports]}}


def deployment(**ports: list[dict[str, Any]]) -> dict[str, Any]:
    containers = [{"name": name, "ports": each} for name, each in ports.items()]
    spec = {"template": {"spec": {"containers": containers}}}
    return {"kind": "Deployment", "metadata": {"resourceVersion": "7"}, "spec": spec}


def test_a_renumbered_port_of_a_service_is_replaced_in_its_place() -> None:
    theirs = {**HTTP, "name": "theirs"}
    operations = renumber(service(HTTP), service(theirs, {**HTTP, "port": 81}))
    assert operations == [VERSION, {"op": "replace", "path": "/spec/ports/1", "value": HTTP}]
    (_, replaced) = renumber(service(HTTP), service({**HTTP, "protocol": "UDP"}))
    assert replaced["value"] == HTTP


def test_a_renumbered_port_of_our_container() -> None:
    ours, changed = [{"name": "http", "containerPort": 8000}], {"name": "http"}
    live = deployment(sidecar=[], octavo=[{**changed, "containerPort": 8001, "protocol": "TCP"}])
    (_, replaced) = renumber(deployment(octavo=ours), live)
    assert replaced["path"] == "/spec/template/spec/containers/1/ports/0"
    assert replaced["value"] == ours[0]


def test_nothing_is_in_the_way() -> None:
    assert renumber(service(HTTP), service(HTTP, {**HTTP, "name": "theirs", "port": 81})) == []
    unnamed = [{"containerPort": 9}]
    same_name_elsewhere = deployment(sidecar=[{"name": "http", "containerPort": 1}], octavo=unnamed)
    ours = [{"name": "http", "containerPort": 8000}, {"containerPort": 9}]
    assert renumber(deployment(octavo=ours), same_name_elsewhere) == []
    budget = {"kind": "PodDisruptionBudget", "metadata": {}, "spec": {}}
    assert renumber(budget, budget) == []
