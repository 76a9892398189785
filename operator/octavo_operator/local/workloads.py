"""From manifest documents to pods: what `octavo up` runs; pure."""

from __future__ import annotations

import base64
import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo_operator import names
from octavo_operator.local.sandbox import LocalSandbox, Manifest, Sandbox
from octavo_operator.local.shape import problems
from octavo_operator.local.volumes import MADE_HERE
from octavo_operator.manifests import UnreadableManifest, check_kind, describe
from octavo_operator.render import render
from octavo_operator.spec import InvalidSpec, parse

Values = dict[tuple[str, str], dict[str, bytes]]


@dataclass(slots=True)
class Workloads:
    """Pods in the order of the files, the objects they may refer to, and kinds left aside."""

    pods: list[Manifest] = field(default_factory=list)
    secrets: Values = field(default_factory=dict)
    config_maps: Values = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def plan(documents: Iterable[tuple[str, Mapping[str, Any]]], replicas: int | None) -> Workloads:
    """From (file, object); InferenceServices are rendered as the operator does.

    `replicas` overrides every Deployment's own number. Raises UnreadableManifest.
    """
    result = Workloads()
    owners: dict[str, str] = {}
    for file, document in documents:
        check_kind(file, document)
        where = f"{file}: {describe(document)}"
        rendered = document.get("kind") == names.KIND
        try:
            items = render(parse(document)) if rendered else [document]
        except InvalidSpec as error:
            raise UnreadableManifest(f"{where}: {error}") from None
        for item in map(without_nulls, items):
            for path, problem in problems(item):
                inside = f"in the {item['kind']}: " if rendered else ""
                raise UnreadableManifest(f"{where}: {inside}{path}: {problem}")
            if item.get("kind") == "Deployment":
                name = item["metadata"]["name"]
                if name in owners:
                    raise UnreadableManifest(f"{where}: its pods are there already: {owners[name]}")
                owners[name] = where
            _add(result, item, replicas, told=not rendered)
    return result


def without_nulls(value: Any) -> Any:
    """As the API server reads built-in kinds: a null field is absent."""
    if isinstance(value, Mapping):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def _add(result: Workloads, item: Manifest, replicas: int | None, *, told: bool) -> None:
    kind = item.get("kind")
    if kind == "Deployment":
        result.pods += deployment_pods(item, replicas)
    elif kind in ("Secret", "ConfigMap"):
        meta = item["metadata"]
        key = (meta.get("namespace") or "default", meta["name"])
        text = {"Secret": "stringData", "ConfigMap": "data"}[kind]
        encoded = {"Secret": "data", "ConfigMap": "binaryData"}[kind]
        values = {k: base64.b64decode(v) for k, v in (item.get(encoded) or {}).items()}
        values |= {k: v.encode() for k, v in (item.get(text) or {}).items()}
        (result.secrets if kind == "Secret" else result.config_maps)[key] = values
    elif told:  # the rest of what `render` gives (a Service) has no meaning here
        result.ignored.append(describe(item))


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
        for volume in template["spec"].get("volumes", ()):
            if len(volume) == 1:
                volume["emptyDir"] = {}  # the API server's default
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


def image_model(pod: Manifest, sandbox: LocalSandbox) -> Path | None:
    """The path that `octavo serve` is told, if in a cluster the image would hold it: no folder of
    `sandbox` stands for it, no volume is mounted there.
    """
    for container in pod["spec"]["containers"]:
        match [*(container.get("command") or ()), *(container.get("args") or ())]:
            case ["octavo", "serve", str(model), *_] if model.startswith("/"):
                mounts = [mount["mountPath"] for mount in container.get("volumeMounts") or ()]
                mounted = any(Path(model).is_relative_to(mount) for mount in mounts)
                if not mounted and sandbox.here(model) == model:
                    return Path(model)
    return None


def base_path(pod: Manifest) -> str:
    """What an OpenAI client's base URL ends with; nothing for pods that are not Octavo's."""
    return "/v1" if names.SERVICE_LABEL in (pod["metadata"].get("labels") or {}) else ""


def serving_port(pod: Manifest) -> int | None:
    """The container port named `http`, or the first one; None if none is declared."""
    ports = [p for c in pod["spec"]["containers"] for p in c.get("ports") or ()]
    named = [p for p in ports if p.get("name") == names.PORT_NAME]
    return int((named or ports)[0]["containerPort"]) if ports else None
