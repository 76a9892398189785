"""Which fields of a pod the runner honours, accepts or refuses; pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from octavo_operator.local.sandbox import Manifest

# A schema is: ANY (accepted whatever is in it), a dict of the allowed keys, or a list with the
# schema of its items. A field that is absent here is refused unless it is empty or false.
ANY: Any = None

HTTP_GET = {"path": ANY, "port": ANY, "host": ANY, "scheme": ANY, "httpHeaders": ANY}
EXEC = {"command": ANY}
PROBE = {
    "exec": EXEC,
    "httpGet": HTTP_GET,
    "tcpSocket": {"port": ANY, "host": ANY},
    "initialDelaySeconds": ANY,
    "periodSeconds": ANY,
    "timeoutSeconds": ANY,
    "successThreshold": ANY,
    "failureThreshold": ANY,
    "terminationGracePeriodSeconds": ANY,
}
CONTAINER = {
    "name": ANY,
    "image": ANY,
    "imagePullPolicy": ANY,
    "command": ANY,
    "args": ANY,
    "workingDir": ANY,
    "ports": [{"name": ANY, "containerPort": ANY, "protocol": ANY}],
    "env": [
        {
            "name": ANY,
            "value": ANY,
            "valueFrom": {
                "secretKeyRef": ANY,
                "configMapKeyRef": ANY,
                "fieldRef": ANY,
                "resourceFieldRef": ANY,
            },
        }
    ],
    "envFrom": [{"prefix": ANY, "configMapRef": ANY, "secretRef": ANY}],
    "resources": {"limits": ANY, "requests": ANY},
    "securityContext": ANY,
    "startupProbe": PROBE,
    "readinessProbe": PROBE,
    "livenessProbe": PROBE,
    "lifecycle": {"preStop": {"exec": EXEC, "httpGet": HTTP_GET, "sleep": {"seconds": ANY}}},
    "terminationMessagePath": ANY,
    "terminationMessagePolicy": ANY,
    "volumeMounts": [
        {
            "name": ANY,
            "mountPath": ANY,
            "subPath": ANY,
            "readOnly": ANY,
            "recursiveReadOnly": {"Disabled", "IfPossible"},
            "mountPropagation": {"None"},
        }
    ],
}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle")
FILES = {
    "name": ANY,
    "secretName": ANY,
    "items": ANY,
    "defaultMode": ANY,
    "optional": ANY,
}
VOLUME = {
    "name": ANY,
    "emptyDir": {"medium": {"", "Memory"}, "sizeLimit": ANY},
    "secret": FILES,
    "configMap": FILES,
    "downwardAPI": {"items": ANY, "defaultMode": ANY},
    "projected": {
        "defaultMode": ANY,
        "sources": [
            {
                "secret": FILES,
                "configMap": FILES,
                "downwardAPI": ANY,
                "serviceAccountToken": ANY,
            }
        ],
    },
}
SPEC = {
    "containers": [CONTAINER],
    "initContainers": [{key: value for key, value in CONTAINER.items() if key not in PROBES}],
    "volumes": [VOLUME],
    "restartPolicy": ANY,
    "terminationGracePeriodSeconds": ANY,
    # Honoured by others: the scheduler, admission, an image puller.
    "nodeName": ANY,
    "nodeSelector": ANY,
    "affinity": ANY,
    "tolerations": ANY,
    "topologySpreadConstraints": ANY,
    "schedulerName": ANY,
    "schedulingGates": ANY,
    "priority": ANY,
    "priorityClassName": ANY,
    "preemptionPolicy": ANY,
    "serviceAccountName": ANY,
    "serviceAccount": ANY,
    "automountServiceAccountToken": ANY,
    "imagePullSecrets": ANY,
    "enableServiceLinks": ANY,
    "dnsPolicy": ANY,
    "securityContext": ANY,
}
NOT_APPLIED_TO_CONTAINERS = ("resources", "securityContext")
NOT_APPLIED_TO_PODS = (
    "securityContext",
    "nodeSelector",
    "affinity",
    "tolerations",
    "priorityClassName",
    "serviceAccountName",
)


def unsupported_fields(pod: Manifest, provided: Collection[str] = ()) -> list[str]:
    """Paths that the runner refuses; `provided` names volumes whose folder the sandbox gives."""
    spec = dict(pod["spec"])
    volumes = spec.get("volumes") or []
    # A provided volume keeps its place in the list, so that the paths of the others are right.
    spec["volumes"] = [v if v["name"] not in provided else {"name": v["name"]} for v in volumes]
    bad = _walk(spec, SPEC, "spec")
    for index, volume in enumerate(spec["volumes"]):
        if len(volume) < 2 and volume["name"] not in provided:
            bad.append(f"spec.volumes[{index}]")
    return bad


def _walk(value: Any, schema: Any, path: str) -> list[str]:
    if schema is ANY:
        return []
    if isinstance(schema, set):
        return [] if value in schema else [f"{path}: {value}"]
    if isinstance(schema, list):
        items = enumerate(value or ())
        return [bad for i, item in items for bad in _walk(item, schema[0], f"{path}[{i}]")]
    result: list[str] = []
    for key, item in (value or {}).items():
        if key in schema:
            result += _walk(item, schema[key], f"{path}.{key}")
        elif item not in (None, False, "", [], {}):
            result.append(f"{path}.{key}")
    return result


def unapplied_fields(pod: Manifest) -> list[str]:
    """Paths that are accepted but mean nothing for plain processes; told once, not refused."""
    spec = pod["spec"]
    result = [f"spec.{key}" for key in NOT_APPLIED_TO_PODS if spec.get(key)]
    for index, volume in enumerate(spec.get("volumes") or ()):
        if (volume.get("emptyDir") or {}).get("sizeLimit"):
            result.append(f"spec.volumes[{index}].emptyDir.sizeLimit")
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(kind) or ()):
            for key in NOT_APPLIED_TO_CONTAINERS:
                if container.get(key):
                    result.append(f"spec.{kind}[{index}].{key}")
    return result
