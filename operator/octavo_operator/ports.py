"""A port of ours that somebody gave another number: server-side apply alone cannot bring it back.

By number and protocol it is another port now, beside which ours would be added: under the same
name, which the API server refuses. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Operation = dict[str, Any]


def renumber(manifest: Mapping[str, Any], live: Mapping[str, Any]) -> list[Operation]:
    """The JSON patch that puts our ports in `live` where others have their names; [] for none."""
    spec, found = manifest["spec"], live["spec"]
    made: list[Operation] = []
    if manifest["kind"] == "Service":
        made += _renumber(spec, found, "port", "/spec")
    elif manifest["kind"] == "Deployment":
        ours = {each["name"]: each for each in spec["template"]["spec"]["containers"]}
        for index, each in enumerate(found["template"]["spec"]["containers"]):
            path = f"/spec/template/spec/containers/{index}"
            made += _renumber(ours.get(each["name"], {}), each, "containerPort", path)
    if not made:
        return []
    # The places are those of the object as it was read.
    version = live["metadata"]["resourceVersion"]
    return [{"op": "test", "path": "/metadata/resourceVersion", "value": version}, *made]


def _renumber(
    ours: Mapping[str, Any], live: Mapping[str, Any], number: str, path: str
) -> Iterator[Operation]:
    by_name = {each["name"]: each for each in ours.get("ports") or () if "name" in each}
    for index, port in enumerate(live.get("ports") or ()):
        wanted = by_name.get(port.get("name"))
        if wanted is not None and _key(port, number) != _key(wanted, number):
            yield {"op": "replace", "path": f"{path}/ports/{index}", "value": wanted}


def _key(port: Mapping[str, Any], number: str) -> tuple[Any, str]:
    return port[number], port.get("protocol", "TCP")
