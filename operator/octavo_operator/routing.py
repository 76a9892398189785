"""What `spec.routing` says: which Gateways bring requests, for which hosts and paths, by what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayRef:
    """`namespace` None is the InferenceService's own, `section_name` None all listeners."""

    name: str
    namespace: str | None = None
    section_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointPicker:
    name: str
    port: int = 9002
    failure_mode: str = "FailClose"


@dataclass(frozen=True, slots=True, kw_only=True)
class InferencePool:
    endpoint_picker: EndpointPicker


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Without `hostnames` every host of the Gateways', without `paths` the OpenAI API."""

    gateways: tuple[GatewayRef, ...]
    hostnames: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    inference_pool: InferencePool | None = None


def read_routing(values: Mapping[str, Any]) -> Routing:
    """Of values that the schema lets through."""
    pool = values.get("inferencePool")
    return Routing(
        gateways=tuple(_read_gateway(each) for each in values["gateways"]),
        hostnames=tuple(values.get("hostnames") or ()),
        paths=tuple(values.get("paths") or ()),
        inference_pool=None if pool is None else InferencePool(endpoint_picker=_read_picker(pool)),
    )


def _read_gateway(values: Mapping[str, Any]) -> GatewayRef:
    return GatewayRef(
        name=values["name"],
        namespace=values.get("namespace"),
        section_name=values.get("sectionName"),
    )


def _read_picker(pool: Mapping[str, Any]) -> EndpointPicker:
    values = pool["endpointPicker"]
    known = {"port": "port", "failureMode": "failure_mode"}
    others = {name: values[key] for key, name in known.items() if values.get(key) is not None}
    return EndpointPicker(name=values["name"], **others)


def find_mistake(routing: Routing) -> tuple[str, str] | None:
    """(path of the field, sentence) where a rule of the schema refuses it."""
    gateways, path = routing.gateways, "spec.routing"
    if not gateways:
        return f"{path}.gateways", "name at least one Gateway"
    for one in gateways:
        same = [
            each for each in gateways if (each.name, each.namespace) == (one.name, one.namespace)
        ]
        sections = [each.section_name for each in same]
        if len(same) > 1 and (one.section_name is None or sections.count(one.section_name) > 1):
            return (
                f"{path}.gateways",
                "a Gateway that is named twice needs different sectionNames; else keep one",
            )
    for index, host in enumerate(routing.hostnames):
        if re.fullmatch(r"[0-9.]+", host):
            return f"{path}.hostnames[{index}]", "must be a host's name, not an address"
    for index, prefix in enumerate(routing.paths):
        if any(part in f"{prefix}/" for part in ("/./", "/../")) or "//" in prefix:
            return f"{path}.paths[{index}]", 'the path must not contain "//", "/./" or "/../"'
    return None
