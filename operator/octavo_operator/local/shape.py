"""What the objects of `octavo up` must look like: the types of the fields that the runner reads.

An API server would check them before a node sees a pod. Fields that are not here are let through;
`supported` refuses those that the runner does not honour.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Any

from octavo_operator import schema

Schema = dict[str, Any]


def _object(*required: str, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "x-kubernetes-preserve-unknown-fields": True,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
FILE_NAME: Schema = {"type": "string", "pattern": r"^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SECONDS: Schema = {"type": "number", "minimum": 0}  # parts of one are of use in tests
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
PORT_OR_NAME: Schema = {"x-kubernetes-int-or-string": True}
WORDS = _list(TEXT)
ANY_OBJECT = _object()

HTTP_GET = _object(
    "port", path=TEXT, port=PORT_OR_NAME, host=TEXT, scheme=TEXT,
    httpHeaders=_list(_object("name", "value", name=NAME, value=TEXT)),
)  # fmt: skip
EXEC = _object("command", command=WORDS)
PROBE = _object(
    exec=EXEC, httpGet=HTTP_GET, tcpSocket=_object("port", port=PORT_OR_NAME, host=TEXT),
    initialDelaySeconds=SECONDS, periodSeconds=SECONDS, timeoutSeconds=SECONDS,
    successThreshold=COUNT, failureThreshold=COUNT, terminationGracePeriodSeconds=COUNT,
)  # fmt: skip
KEY = _object("name", "key", name=NAME, key=NAME, optional=FLAG)
SOURCE = _object(name=TEXT, optional=FLAG)
RESOURCE = _object("resource", resource=NAME, containerName=TEXT, divisor=PORT_OR_NAME)
FIELD = _object("fieldPath", fieldPath=NAME)
ENV = _object(
    "name", name=NAME, value=TEXT,
    valueFrom=_object(
        secretKeyRef=KEY, configMapKeyRef=KEY, fieldRef=FIELD, resourceFieldRef=RESOURCE
    ),
)  # fmt: skip
CONTAINER = _object(
    "name", name=FILE_NAME, image=TEXT, command=WORDS, args=WORDS, workingDir=TEXT,
    ports=_list(_object("containerPort", name=TEXT, containerPort=PORT)),
    env=_list(ENV),
    envFrom=_list(_object(prefix=TEXT, configMapRef=SOURCE, secretRef=SOURCE)),
    resources=_object(limits=ANY_OBJECT, requests=ANY_OBJECT),
    securityContext=ANY_OBJECT,
    startupProbe=PROBE, readinessProbe=PROBE, livenessProbe=PROBE,
    lifecycle=_object(
        preStop=_object(exec=EXEC, httpGet=HTTP_GET, sleep=_object("seconds", seconds=SECONDS))
    ),
    terminationMessagePath=TEXT, terminationMessagePolicy=TEXT,
    volumeMounts=_list(
        _object(
            "name", "mountPath", name=NAME, mountPath=NAME, subPath=TEXT, readOnly=FLAG,
            recursiveReadOnly=TEXT, mountPropagation=TEXT,
        )
    ),
)  # fmt: skip
ITEMS = _list(_object("key", "path", key=NAME, path=NAME, mode=COUNT))
FILES = _object(
    name=TEXT, secretName=TEXT, items=ITEMS, defaultMode=COUNT, optional=FLAG
)  # fmt: skip
DOWNWARD = _object(
    items=_list(_object("path", path=NAME, fieldRef=FIELD, resourceFieldRef=RESOURCE, mode=COUNT)),
    defaultMode=COUNT,
)
PROJECTION = _object(
    secret=FILES, configMap=FILES, downwardAPI=DOWNWARD,
    serviceAccountToken=_object("path", path=NAME, audience=TEXT, expirationSeconds=COUNT),
)  # fmt: skip
VOLUME = _object(
    "name", name=FILE_NAME, emptyDir=_object(medium=TEXT, sizeLimit=PORT_OR_NAME),
    secret=FILES, configMap=FILES, downwardAPI=DOWNWARD,
    projected=_object(sources=_list(PROJECTION), defaultMode=COUNT),
)  # fmt: skip
POD = _object(
    "containers", containers=_list(CONTAINER), initContainers=_list(CONTAINER),
    volumes=_list(VOLUME), restartPolicy={"type": "string", "enum": ["Always"]},
    terminationGracePeriodSeconds=COUNT, serviceAccountName=TEXT, nodeName=TEXT,
    securityContext=_object(fsGroup=COUNT),
)  # fmt: skip
METADATA = _object(
    "name", name=FILE_NAME, namespace=TEXT, labels=_map(TEXT), annotations=_map(TEXT)
)
TEMPLATE = _object(
    "spec", metadata=_object(labels=_map(TEXT), annotations=_map(TEXT)), spec=POD
)  # fmt: skip
OBJECTS: dict[str, Schema] = {
    "Deployment": _object(
        "metadata", "spec", metadata=METADATA,
        spec=_object("template", replicas=COUNT, template=TEMPLATE),
    ),
    "Secret": _object("metadata", metadata=METADATA, data=_map(TEXT), stringData=_map(TEXT)),
    "ConfigMap": _object("metadata", metadata=METADATA, data=_map(TEXT), binaryData=_map(TEXT)),
}  # fmt: skip
ENCODED = {"Secret": "data", "ConfigMap": "binaryData"}


def problems(item: Mapping[str, Any]) -> Iterator[schema.Problem]:
    """What is wrong with a Deployment, Secret or ConfigMap; nothing is said of other kinds."""
    kind = str(item.get("kind"))
    if kind not in OBJECTS:
        return
    found = [(path.lstrip("."), text) for path, text in schema.check(OBJECTS[kind], item, "")]
    yield from found
    if found:
        return
    for key, value in (item.get(ENCODED.get(kind, "")) or {}).items():
        try:
            b64decode("".join((value or "").split()), validate=True)
        except (binascii.Error, ValueError):
            yield f"{ENCODED[kind]}.{key}", "is not base64"
    if kind == "Deployment":
        yield from _pod_problems(item["spec"]["template"]["spec"], "spec.template.spec")


def _pod_problems(spec: Mapping[str, Any], path: str) -> Iterator[schema.Problem]:
    """References inside the pod; names that must differ."""
    volumes = [volume["name"] for volume in spec.get("volumes") or ()]
    yield from _repeated(volumes, f"{path}.volumes")
    if not spec["containers"]:
        yield f"{path}.containers", "must have at least 1 item"
    names: list[str] = []
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(kind) or ()):
            here = f"{path}.{kind}[{index}]"
            if container["name"] in names:
                yield f"{here}.name", f"{container['name']!r} is there twice"
            names.append(container["name"])
            for at, mount in enumerate(container.get("volumeMounts") or ()):
                if mount["name"] not in volumes:
                    yield f"{here}.volumeMounts[{at}].name", f"no volume {mount['name']!r}"


def _repeated(names: list[str], path: str) -> Iterator[schema.Problem]:
    for index, name in enumerate(names):
        if name in names[:index]:
            yield f"{path}[{index}].name", f"{name!r} is there twice"
