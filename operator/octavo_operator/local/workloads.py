"""From manifest documents to pods: what `octavo up` runs; pure."""

from __future__ import annotations

import base64
import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo_operator import names
from octavo_operator.local.sandbox import Manifest, Sandbox
from octavo_operator.local.volumes import MADE_HERE
from octavo_operator.render import render
from octavo_operator.spec import parse

Values = dict[tuple[str, str], dict[str, bytes]]


@dataclass(slots=True)
class Workloads:
    """Pods in the order of the files, the objects they may refer to, and kinds left aside."""

    pods: list[Manifest] = field(default_factory=list)
    secrets: Values = field(default_factory=dict)
    config_maps: Values = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def plan(documents: Iterable[Mapping[str, Any]], replicas: int | None) -> Workloads:
    """InferenceServices are rendered as the operator does; raises spec.InvalidSpec.

    `replicas` overrides every Deployment's own number.
    """
    result = Workloads()
    for document in documents:
        rendered = document.get("kind") == names.KIND
        for item in render(parse(document)) if rendered else [dict(document)]:
            _add(result, item, replicas, told=not rendered)
    return result


def _add(result: Workloads, item: Manifest, replicas: int | None, *, told: bool) -> None:
    kind, meta = item.get("kind"), item.get("metadata") or {}
    key = (str(meta.get("namespace") or "default"), str(meta.get("name")))
    if kind == "Deployment":
        result.pods += deployment_pods(item, replicas)
    elif kind == "Secret":
        data = {k: base64.b64decode(v) for k, v in (item.get("data") or {}).items()}
        text = {k: str(v).encode() for k, v in (item.get("stringData") or {}).items()}
        result.secrets[key] = data | text
    elif kind == "ConfigMap":
        text = {k: str(v).encode() for k, v in (item.get("data") or {}).items()}
        data = {k: base64.b64decode(v) for k, v in (item.get("binaryData") or {}).items()}
        result.config_maps[key] = text | data
    elif told:  # the rest of what `render` gives (a Service) has no meaning here
        result.ignored.append(f"{kind} {key[1]}")


def deployment_pods(deployment: Manifest, replicas: int | None) -> list[Manifest]:
    """The replicas NAME-0, NAME-1, ..."""
    meta, spec = deployment["metadata"], deployment["spec"]
    count = int(spec.get("replicas", 1)) if replicas is None else replicas
    namespace = meta.get("namespace") or "default"
    pods: list[Manifest] = []
    for index in range(count):
        template = copy.deepcopy(spec["template"])
        name = f"{meta['name']}-{index}"
        own = {"name": name, "namespace": namespace, "uid": f"{namespace}.{name}"}
        pods.append(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {**(template.get("metadata") or {}), **own},
                "spec": template["spec"],
            }
        )
    return pods


def missing_volumes(pod: Manifest, sandbox: Sandbox) -> list[str]:
    """Mount paths of claims, images and the like that no folder stands for."""
    missing = {
        volume["name"]
        for volume in pod["spec"].get("volumes") or ()
        if not any(kind in volume for kind in MADE_HERE)
        and sandbox.volume_folder(pod, volume) is None
    }
    spec = pod["spec"]
    containers = [*(spec.get("initContainers") or ()), *spec["containers"]]
    mounts = [mount for each in containers for mount in each.get("volumeMounts") or ()]
    return sorted({mount["mountPath"] for mount in mounts if mount["name"] in missing})


def base_path(pod: Manifest) -> str:
    """What an OpenAI client's base URL ends with; nothing for pods that are not Octavo's."""
    return "/v1" if names.SERVICE_LABEL in (pod["metadata"].get("labels") or {}) else ""


def serving_port(pod: Manifest) -> int | None:
    """The container port named `http`, or the first one; None if none is declared."""
    ports = [p for c in pod["spec"]["containers"] for p in c.get("ports") or ()]
    named = [p for p in ports if p.get("name") == names.PORT_NAME]
    return int((named or ports)[0]["containerPort"]) if ports else None
