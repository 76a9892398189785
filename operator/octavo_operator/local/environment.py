"""A container's environment, command and arguments, as Kubernetes builds them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

from octavo_operator.local.resolver import MissingReference, Resolver
from octavo_operator.local.sandbox import Manifest
from octavo_operator.quantity import parse_quantity

REFERENCE = re.compile(r"\$(\$|\(([^()]*)\))")
FIELD_KEY = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


def expand(text: str, values: Mapping[str, str]) -> str:
    """`$(NAME)` becomes its value, or stays if there is none; `$$` becomes `$`."""

    def replace(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return values.get(match[2], match[0])

    return REFERENCE.sub(replace, text)


def command_line(container: Manifest, values: Mapping[str, str]) -> list[str]:
    """Command and arguments, expanded; raises MissingReference where only the image would know."""
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    if not container.get("command"):
        raise MissingReference(
            f"container {container['name']} has no command: an image's own cannot be known here"
        )
    return [expand(str(word), values) for word in words]


async def container_environment(
    pod: Manifest, container: Manifest, resolver: Resolver, *, pod_ip: str, host_ip: str
) -> dict[str, str]:
    """envFrom first, then env in order; raises MissingReference with a kubelet's words."""
    namespace = str(pod["metadata"].get("namespace", "default"))
    values: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        prefix = str(source.get("prefix") or "")
        for kind in ("configMapRef", "secretRef"):
            if kind in source:
                data = await _object(namespace, kind, source[kind], resolver)
                values.update({prefix + key: value.decode() for key, value in data.items()})
    for entry in container.get("env") or ():
        name = str(entry["name"])
        source = entry.get("valueFrom")
        if not source:
            values[name] = expand(str(entry.get("value") or ""), values)
            continue
        value: str | None
        if "fieldRef" in source:
            value = field_value(pod, source["fieldRef"]["fieldPath"], pod_ip, host_ip)
        elif "resourceFieldRef" in source:
            value = resource_value(pod, container, source["resourceFieldRef"])
        else:
            kind = "secretKeyRef" if "secretKeyRef" in source else "configMapKeyRef"
            value = await _key(namespace, kind, source[kind], resolver)
        if value is not None:
            values[name] = value
    return values


async def _object(
    namespace: str, kind: str, reference: Mapping[str, Any], resolver: Resolver
) -> dict[str, bytes]:
    secret = kind.startswith("secret")
    name = str(reference["name"])
    get = resolver.get_secret if secret else resolver.get_config_map
    data = await get(namespace, name)
    if data is None:
        if reference.get("optional"):
            return {}
        raise MissingReference(f'{"secret" if secret else "configmap"} "{name}" not found')
    return data


async def _key(
    namespace: str, kind: str, reference: Mapping[str, Any], resolver: Resolver
) -> str | None:
    data = await _object(namespace, kind, reference, resolver)
    key = str(reference["key"])
    if key in data:
        return data[key].decode()
    if reference.get("optional"):
        return None
    what = "Secret" if kind.startswith("secret") else "ConfigMap"
    raise MissingReference(f"couldn't find key {key} in {what} {namespace}/{reference['name']}")


def field_value(pod: Manifest, path: str, pod_ip: str, host_ip: str) -> str:
    """A fieldRef's value; raises MissingReference for a path that Kubernetes does not offer."""
    meta, spec = pod["metadata"], pod["spec"]
    if match := FIELD_KEY.fullmatch(path):
        return str((meta.get(match[1]) or {}).get(match[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):  # downward volumes only
        items = (meta.get(path.removeprefix("metadata.")) or {}).items()
        return "\n".join(f'{key}="{value}"' for key, value in sorted(items))
    simple = {
        "metadata.name": meta.get("name", ""),
        "metadata.namespace": meta.get("namespace", "default"),
        "metadata.uid": meta.get("uid", ""),
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.hostIP": host_ip,
        "status.hostIPs": host_ip,
        "status.podIP": pod_ip,
        "status.podIPs": pod_ip,
    }
    if path not in simple:
        raise MissingReference(f"unsupported fieldPath: {path}")
    return str(simple[path])


def resource_value(pod: Manifest, container: Manifest, reference: Mapping[str, Any]) -> str:
    """A resourceFieldRef's value, rounded up to whole divisors; no limit: what the machine has."""
    if wanted := reference.get("containerName"):
        spec = pod["spec"]
        every = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
        container = next(c for c in every if c["name"] == wanted)
    which, _, resource = str(reference["resource"]).partition(".")
    resources = container.get("resources") or {}
    quantity = (resources.get(which) or {}).get(resource)
    if quantity is None and which == "requests":
        quantity = (resources.get("limits") or {}).get(resource)
    if quantity is None:
        quantity = machine_resources().get(resource, "0") if which == "limits" else "0"
    divisor = parse_quantity(str(reference.get("divisor") or "1"))
    return str(math.ceil(parse_quantity(str(quantity)) / (divisor or 1)))


def machine_resources() -> dict[str, str]:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": str(os.cpu_count() or 1), "memory": str(memory_bytes)}
