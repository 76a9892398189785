"""The Deployment: pods that serve the model."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from octavo_operator import names
from octavo_operator.drain import PRE_STOP_SECONDS, grace_seconds
from octavo_operator.installation import Installation
from octavo_operator.pod_defaults import PodDefaults
from octavo_operator.render.arguments import literal, locate, render_arguments
from octavo_operator.render.defaults import default_env, render_defaults
from octavo_operator.render.fetch import with_fetch
from octavo_operator.render.merge import merge
from octavo_operator.render.probes import render_probes, startup_seconds
from octavo_operator.render.settings import settings_text
from octavo_operator.spec import InferenceService

USER_ID = 10001
"""Of the image's user; a number, since runAsNonRoot cannot judge a name."""

CACHE_PATH = "/cache"


def render_deployment(
    service: InferenceService,
    *,
    image: str,
    replicas: int | None,
    installation: Installation = Installation(),
    fetches: bool = True,
) -> dict[str, Any]:
    """`image` is the default one; `fetches`: the chosen one knows `octavo fetch`."""
    chosen = choose_image(service, image)
    template = render_pod_template(service, chosen, installation.defaults, fetches=fetches)
    revision = hash_template(template)
    template = mark(template, revision)
    if service.spec.replicas is not None:
        replicas = service.spec.replicas
    if replicas is None:
        replicas = service.first_replicas
    annotations = {
        names.REVISION_ANNOTATION: revision,
        names.RENDERED_ANNOTATION: settings_text(service, chosen),
    }
    if service.spec.suspend:
        annotations[names.RESUME_ANNOTATION] = str(replicas)
        replicas = 0
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": service.name,
            "namespace": service.namespace,
            "labels": names.labels(service.name),
            "annotations": annotations,
        },
        "spec": {
            # Always there: server-side apply sets a field that its owner drops back to the default,
            # 1.
            "replicas": replicas,
            "selector": {"matchLabels": names.selector(service.name)},
            "strategy": render_strategy(service.wants_gpu),
            # Later than the startup probe's end, so that a slow load is not called a failed
            # rollout.
            "progressDeadlineSeconds": startup_seconds(service.spec.engine.tensor_parallel_size)
            + 600,
            "revisionHistoryLimit": 3,
            "template": template,
        },
    }


def render_strategy(wants_gpu: bool) -> dict[str, Any]:
    """GPU pods end first: a surge pod would wait forever for a GPU that its elder holds.

    CPU pods are replaced without a gap, since a node usually has room for one more.
    """
    surge, unavailable = (0, 1) if wants_gpu else (1, 0)
    return {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable},
    }


def choose_image(service: InferenceService, default: str) -> str:
    """The manifest's image, or the default one, with the manifest's version as its tag."""
    engine = service.spec.engine
    if engine.image is not None:
        return engine.image
    if engine.version is None:
        return default
    repository = default.partition("@")[0]
    # A colon before the last slash is a registry's port, not a tag.
    head, slash, tail = repository.rpartition("/")
    return f"{head}{slash}{tail.partition(':')[0]}:{engine.version}"


def hash_template(template: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(template).encode()).hexdigest()[:10]


def canonical(template: dict[str, Any]) -> str:
    return json.dumps(template, sort_keys=True, separators=(",", ":"))


def is_template_of(text: object, revision: object) -> bool:
    """Whether the text is the template of that revision, and not what somebody made of it."""
    try:
        return isinstance(text, str) and hash_template(json.loads(text)) == revision
    except (ValueError, RecursionError):
        return False


def mark(template: dict[str, Any], revision: str) -> dict[str, Any]:
    """The template with its revision on it, for its pods to carry."""
    metadata = template["metadata"]
    annotations = {**metadata.get("annotations", {}), names.REVISION_ANNOTATION: revision}
    return {**template, "metadata": {**metadata, "annotations": annotations}}


def render_pod_template(
    service: InferenceService, image: str, defaults: PodDefaults, *, fetches: bool = True
) -> dict[str, Any]:
    """The rendered template with the platform's defaults over it, and over both the manifest's
    podTemplate; our labels win.
    """
    location = locate(service)
    shared_memory = service.spec.engine.tensor_parallel_size > 1
    volumes = [render_cache(service)]
    mounts: list[dict[str, Any]] = [{"name": "cache", "mountPath": CACHE_PATH}]
    if shared_memory:
        # NCCL and the ranks' queues use /dev/shm; the runtime's 64 MiB are too few. In memory, it
        # counts toward the container's memory limit.
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    if location.volume is not None and location.mount is not None:
        volumes.append(location.volume)
        mounts.append(location.mount)
    container: dict[str, Any] = {
        "name": names.CONTAINER,
        "image": image,
        "command": ["octavo", "serve", literal(location.model)],
        "args": render_arguments(service),
        "ports": [{"name": names.PORT_NAME, "containerPort": names.PORT, "protocol": "TCP"}],
        "env": render_env(service, location.env, default_env(defaults)),
        **render_probes(service.spec.engine.tensor_parallel_size),
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}},
        # The server writes its reason there; if it could not, the log's tail is better than
        # nothing.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            # The GPU runtime's hook writes library links into the root file system.
            "readOnlyRootFilesystem": False,
        },
        "volumeMounts": mounts,
    }
    if resources := render_resources(service):
        container["resources"] = resources
    pod: dict[str, Any] = {
        "containers": [container],
        "volumes": volumes,
        "terminationGracePeriodSeconds": grace_seconds(service.spec.drain.seconds),
        # The server never talks to the API server.
        "automountServiceAccountToken": False,
        # Variables such as OCTAVO_PORT of a Service named octavo would reach the server's settings.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    # The last pods of a service should not go with one node. Only a wish: a cluster may have one
    # node with GPUs. Each revision by itself, or a rollout's old pods would push the new ones away.
    pod["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": names.selector(service.name)},
            "matchLabelKeys": ["pod-template-hash"],
        }
    ]
    if service.wants_gpu:
        # Nodes with slices have the taint of the whole.
        slice_of = [names.GPU_RESOURCE] if service.gpu_resource.startswith("nvidia.com/") else []
        pod["tolerations"] = [
            {"key": key, "operator": "Exists", "effect": "NoSchedule"}
            for key in dict.fromkeys([service.gpu_resource, *slice_of])
        ]
    template = merge({"metadata": {}, "spec": pod}, render_defaults(defaults, service))
    template = merge(template, service.spec.pod_template)
    if fetches:
        template["spec"] = with_fetch(service, template["spec"])
    metadata = merge(template["metadata"], {"labels": names.labels(service.name)})
    # The revision is ours, and {} is as good as nothing: two writings of one template.
    annotations = dict(metadata.pop("annotations", None) or {})
    annotations.pop(names.REVISION_ANNOTATION, None)
    template["metadata"] = {**metadata, "annotations": annotations} if annotations else metadata
    return template


def render_cache(service: InferenceService) -> dict[str, Any]:
    """The volume of downloaded weights and compiled kernels."""
    cache = service.spec.cache
    if cache.persistent_volume_claim is not None:
        return {
            "name": "cache",
            "persistentVolumeClaim": {"claimName": cache.persistent_volume_claim},
        }
    return {"name": "cache", "emptyDir": {} if cache.size is None else {"sizeLimit": cache.size}}


def render_env(
    service: InferenceService,
    location_env: list[dict[str, Any]],
    default_env: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """The caches' places, the platform's variables, then the manifest's: the Hub token, the API
    key, its own. Later ones win.
    """
    env: list[dict[str, Any]] = [
        # A user id without a home, and libraries that want to write into one.
        {"name": "HOME", "value": CACHE_PATH},
        {"name": "HF_HOME", "value": f"{CACHE_PATH}/huggingface"},
        {"name": "TRITON_CACHE_DIR", "value": f"{CACHE_PATH}/triton"},
    ]
    own = list(location_env)
    if (key := service.spec.api_key_secret_ref) is not None:
        reference = {"secretKeyRef": {"name": key.name, "key": key.key}}
        own.append({"name": "OCTAVO_API_KEY", "valueFrom": reference})
    merged: dict[str, Any] = {"env": env}
    for more in (default_env, own, service.spec.engine.env):
        merged = merge(merged, {"env": [dict(each) for each in more]})
    result: list[dict[str, Any]] = merged["env"]
    return result


def render_resources(service: InferenceService) -> dict[str, Any]:
    """The manifest's resources, plus as many GPUs as tensorParallelSize if it names none."""
    resources = service.spec.resources
    limits = dict(resources.limits)
    if service.wants_gpu and not resources.gpu_names:
        limits[service.gpu_resource] = service.spec.engine.tensor_parallel_size
    # A count of 0 only says "no GPU".
    limits = {
        name: amount
        for name, amount in limits.items()
        if not (name in service.counted and resources.count(name) == 0)
    }
    requests = {
        name: amount for name, amount in resources.requests.items() if name not in service.counted
    }
    return {key: value for key, value in (("limits", limits), ("requests", requests)) if value}
