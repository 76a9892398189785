"""An InferenceService as values: `parse` reads a manifest or says what is wrong with it.

Field names are the schema's in snake_case (a test compares them with crds/), defaults are the
schema's too, since `octavo render` and `octavo up` read manifests that no API server has completed.
The checks across fields repeat the schema's CEL rules with the same sentences.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from octavo_operator import names, schema
from octavo_operator.autoscaling import Autoscaling, find_scaling_mistake
from octavo_operator.drain import grace_seconds
from octavo_operator.model_uri import HubModel, ModelUri, parse_uri
from octavo_operator.peers import peer_problems
from octavo_operator.quantity import parse_quantity
from octavo_operator.routing import Routing, find_mistake, read_routing

_TOLD = 10  # wrong fields that one message names


class InvalidSpec(ValueError):
    """A user's mistake: `path` is the field ("spec.engine.maxModelLen"), `problem` a sentence.

    Where the schema refuses several fields, `problem` goes on with the paths of the others.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRef:
    name: str
    key: str = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    uri: str
    names: tuple[str, ...] = ()
    revision: str | None = None
    endpoint: str | None = None
    chat_template: str | None = None
    config: Mapping[str, Any] | None = None
    secret_ref: SecretRef | None = None

    @property
    def source(self) -> ModelUri:
        """The uri taken apart, with `revision` filled in."""
        source = parse_uri(self.uri)
        if isinstance(source, HubModel) and self.revision is not None:
            return HubModel(source.repository, self.revision)
        return source


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """None leaves a setting to the engine."""

    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    dtype: str = "auto"
    block_size: int | None = None
    kv_cache_memory: str | int | None = None
    device: str = "auto"
    enable_prefix_caching: bool = True
    extra_args: tuple[str, ...] = ()
    env: tuple[Mapping[str, Any], ...] = ()
    image: str | None = None
    version: str | None = None

    @property
    def kv_cache_memory_bytes(self) -> int | None:
        return None if self.kv_cache_memory is None else int(parse_quantity(self.kv_cache_memory))


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    limits: Mapping[str, str | int] = field(default_factory=dict)
    requests: Mapping[str, str | int] = field(default_factory=dict)

    def count(self, resource: str) -> int | None:
        """How many whole `resource` the container asks for, None if it says nothing about it."""
        amount = self.limits.get(resource, self.requests.get(resource))
        return None if amount is None else int(parse_quantity(amount))

    @property
    def gpu_names(self) -> tuple[str, ...]:
        """The resources here that are some vendor's GPU, or a slice of one."""
        return tuple(
            name for name in dict.fromkeys((*self.limits, *self.requests)) if names.is_gpu(name)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    persistent_volume_claim: str | None = None
    size: str | int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    seconds: int = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """`spec.service`."""

    type: str = "ClusterIP"
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPolicy:
    from_: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyRef:
    name: str
    key: str = "api-key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    model: Model
    engine: Engine = field(default_factory=Engine)
    replicas: int | None = None
    suspend: bool = False
    autoscaling: Autoscaling | None = None
    resources: Resources = field(default_factory=Resources)
    cache: Cache = field(default_factory=Cache)
    drain: Drain = field(default_factory=Drain)
    service: Exposure = field(default_factory=Exposure)
    network_policy: NetworkPolicy | None = None
    routing: Routing | None = None
    api_key_secret_ref: ApiKeyRef | None = None
    pod_template: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceService:
    name: str
    namespace: str
    uid: str
    generation: int
    spec: Spec
    upgrade: str = ""  # the annotation of that name
    labels: Mapping[str, str] = field(default_factory=dict)
    gpu_resource: str = names.GPU_RESOURCE  # the installation's

    @property
    def wants_gpu(self) -> bool:
        """False for device cpu, and for device auto with an explicit count of 0 GPUs."""
        if self.spec.engine.device == "auto":
            return all(self.spec.resources.count(each) != 0 for each in self.counted)
        return self.spec.engine.device == "cuda"

    @property
    def counted(self) -> tuple[str, ...]:
        """The resources that are GPUs of an installation; the second in manifests for all."""
        return tuple(dict.fromkeys((self.gpu_resource, names.GPU_RESOURCE)))

    @property
    def first_replicas(self) -> int:
        """How many pods a Deployment starts with if nobody says and none is there yet."""
        if self.spec.replicas is not None:
            return self.spec.replicas
        return 1 if self.spec.autoscaling is None else max(1, self.spec.autoscaling.min_replicas)


def parse(
    manifest: Mapping[str, Any], *, gpu_resource: str = names.GPU_RESOURCE
) -> InferenceService:
    """The InferenceService of a manifest, complete or as a user wrote it; or InvalidSpec."""
    if (manifest.get("apiVersion"), manifest.get("kind")) != (names.API_VERSION, names.KIND):
        raise InvalidSpec("kind", f"is not an {names.KIND} of {names.API_VERSION}")
    manifest = schema.without_nulls(manifest)
    if found := list(itertools.islice(schema.problems(manifest), _TOLD)):
        path, problem = found[0]
        more = [f"{where}: {what}" for where, what in found[1:]]
        raise InvalidSpec(path, "; ".join([problem, *more]))
    metadata = manifest["metadata"]
    if not isinstance(metadata.get("labels") or {}, Mapping):
        raise InvalidSpec("metadata.labels", "must be of type object")
    for key in ("name", "namespace", "uid"):
        if not isinstance(metadata.get(key, ""), str):
            raise InvalidSpec(f"metadata.{key}", "must be of type string")
    name = metadata.get("name", "")
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 52:
        raise InvalidSpec(
            "metadata.name",
            'the name becomes a DNS name: start with a letter, use only a-z, 0-9 and "-", end with '
            "a letter or digit, at most 52 characters",
        )
    spec = manifest["spec"]
    service = InferenceService(
        name=name,
        namespace=metadata.get("namespace") or "default",
        uid=metadata.get("uid", ""),
        generation=metadata.get("generation", 0),
        gpu_resource=gpu_resource,
        labels={key: str(each) for key, each in (metadata.get("labels") or {}).items()},
        upgrade=str((metadata.get("annotations") or {}).get(names.UPGRADE_ANNOTATION, "")),
        spec=Spec(
            model=_build(Model, spec["model"], names=tuple, secretRef=_secret_ref),
            engine=_build(Engine, spec.get("engine") or {}, extraArgs=tuple, env=tuple),
            replicas=spec.get("replicas"),
            suspend=spec.get("suspend", False),
            autoscaling=_build(Autoscaling, spec["autoscaling"])
            if spec.get("autoscaling")
            else None,
            resources=_build(Resources, spec.get("resources") or {}),
            cache=_build(Cache, spec.get("cache") or {}),
            drain=_build(Drain, spec.get("drain") or {}),
            service=_build(Exposure, spec.get("service") or {}),
            network_policy=None
            if spec.get("networkPolicy") is None
            else _build(NetworkPolicy, spec["networkPolicy"], **{"from": tuple}),
            routing=read_routing(spec["routing"]) if spec.get("routing") is not None else None,
            api_key_secret_ref=_build(ApiKeyRef, spec["apiKeySecretRef"])
            if spec.get("apiKeySecretRef")
            else None,
            pod_template=spec.get("podTemplate") or {},
        ),
    )
    _check_model(service.spec.model)
    _check_engine(service.spec.engine)
    for each in service.counted:
        _check_gpus(service.spec, each)
    _check_rest(service.spec)
    return service


_T = TypeVar("_T")


def _build(kind: type[_T], values: Mapping[str, Any], **convert: Callable[[Any], Any]) -> _T:
    """A dataclass from the manifest's camelCase fields; a null is as good as absent."""
    arguments = {}
    for each in fields(kind):  # type: ignore[arg-type]  # every `kind` is a dataclass of this file
        key = camel_case(each.name)
        value = values.get(key)
        if value is not None:
            arguments[each.name] = convert[key](value) if key in convert else value
    return kind(**arguments)


def camel_case(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _secret_ref(value: Mapping[str, Any]) -> SecretRef:
    return _build(SecretRef, value)


def _check_model(model: Model) -> None:
    try:
        source = parse_uri(model.uri)
    except ValueError as error:
        raise InvalidSpec("spec.model.uri", str(error)) from None
    if model.revision is not None:
        if not isinstance(source, HubModel):
            raise InvalidSpec(
                "spec.model.revision",
                "a revision belongs to a Hub model (hf://); remove it or use an hf:// uri",
            )
        if source.revision is not None:
            raise InvalidSpec(
                "spec.model.revision",
                "the revision is given twice, here and after the @ of the uri; keep one",
            )
    if model.endpoint is not None and not isinstance(source, HubModel):
        raise InvalidSpec(
            "spec.model.endpoint",
            "an endpoint belongs to a Hub model (hf://); remove it or use an hf:// uri",
        )
    if model.secret_ref is not None and not isinstance(source, HubModel):
        raise InvalidSpec(
            "spec.model.secretRef",
            "a Hub token belongs to a Hub model (hf://); remove it or use an hf:// uri",
        )


_TYPED_FLAG = re.compile(
    r"--(tensor-parallel-size|gpu-memory-utilization|max-model-len|max-num-seqs"
    r"|max-num-batched-tokens|dtype|block-size|kv-cache-memory-bytes|device"
    r"|(no-)?enable-prefix-caching|served-model-name|revision|chat-template)(=|$)"
)
_OPERATORS_FLAG = re.compile(r"--(host|port|shutdown-timeout)(=|$)")
_ELSEWHERE_FLAG = re.compile(r"--(model|api-key)(=|$)")


def _check_engine(engine: Engine) -> None:
    if not 0.05 <= engine.gpu_memory_utilization <= 0.98:
        raise InvalidSpec(
            "spec.engine.gpuMemoryUtilization", "must be a fraction from 0.05 to 0.98"
        )
    if (
        engine.max_model_len is not None
        and engine.max_model_len != -1
        and engine.max_model_len < 16
    ):
        raise InvalidSpec("spec.engine.maxModelLen", "must be -1 (what fits) or at least 16 tokens")
    cache = engine.kv_cache_memory_bytes
    if cache is not None and not 2**20 < cache < 64 * 2**40:
        raise InvalidSpec("spec.engine.kvCacheMemory", "must be more than 1Mi and less than 64Ti")
    if engine.image is not None and engine.version is not None:
        raise InvalidSpec("spec.engine.version", "give image or version, not both")
    for argument in engine.extra_args:
        if _TYPED_FLAG.match(argument):
            raise InvalidSpec(
                "spec.engine.extraArgs",
                "this flag has a field of its own (such as engine.maxModelLen or model.names); use "
                f"the field: {argument}",
            )
        if _OPERATORS_FLAG.match(argument):
            raise InvalidSpec(
                "spec.engine.extraArgs",
                "the operator sets --host, --port and --shutdown-timeout, which the pod's probes "
                "and drain rely on",
            )
        if _ELSEWHERE_FLAG.match(argument):
            raise InvalidSpec(
                "spec.engine.extraArgs",
                "write the model into model.uri, and name the Secret of an API key in "
                "apiKeySecretRef",
            )
    for index, variable in enumerate(engine.env):
        path = f"spec.engine.env[{index}].valueFrom"
        if "value" in variable and "valueFrom" in variable:
            raise InvalidSpec(path, "give value or valueFrom, not both")
        if "valueFrom" in variable and len(variable["valueFrom"]) != 1:
            raise InvalidSpec(
                path, "give exactly one of secretKeyRef, configMapKeyRef and fieldRef"
            )


def _check_gpus(spec: Spec, gpu_resource: str) -> None:
    resources = spec.resources
    for name in resources.gpu_names:
        limit, request = resources.limits.get(name), resources.requests.get(name)
        if request is not None and str(request) != str(limit):
            raise InvalidSpec(
                "spec.resources.requests",
                f"GPUs are never shared: give {name} in limits, and in requests the same or "
                "nothing",
            )
        if re.fullmatch(r"[0-9]{1,3}", str(limit)) is None:
            raise InvalidSpec(
                "spec.resources.limits", f"GPUs come whole: {name} must be a number such as 1"
            )
    count, size = resources.count(gpu_resource), spec.engine.tensor_parallel_size
    if count is None or spec.engine.device == "cpu":
        return
    if count == 0 and spec.engine.device == "cuda":
        raise InvalidSpec(
            "spec.resources.limits",
            f"engine.device is cuda, but {gpu_resource} is 0; change one of them",
        )
    if 0 < count < size:
        raise InvalidSpec(
            "spec.resources.limits",
            f"{gpu_resource} is {count}, but engine.tensorParallelSize needs {size}; leave "
            "it out or raise it",
        )


def _check_rest(spec: Spec) -> None:
    scaling = spec.autoscaling
    if scaling is not None and (wrong := find_scaling_mistake(scaling)) is not None:
        raise InvalidSpec(*wrong)
    if spec.cache.persistent_volume_claim is not None and spec.cache.size is not None:
        raise InvalidSpec(
            "spec.cache.size",
            "a claim has its own size: give persistentVolumeClaim or size, not both",
        )
    for where, problem in peer_problems(spec.network_policy.from_ if spec.network_policy else ()):
        raise InvalidSpec(f"spec.networkPolicy.from{where}", problem)
    if spec.routing is not None and (mistake := find_mistake(spec.routing)) is not None:
        raise InvalidSpec(*mistake)
    if spec.api_key_secret_ref is not None and any(
        each.get("name") == "OCTAVO_API_KEY" for each in spec.engine.env
    ):
        raise InvalidSpec(
            "spec.apiKeySecretRef",
            "the API key is given twice, here and in engine.env as OCTAVO_API_KEY; keep one",
        )
    template = spec.pod_template
    if names.SERVICE_LABEL in ((template.get("metadata") or {}).get("labels") or {}):
        raise InvalidSpec(
            "spec.podTemplate.metadata.labels",
            f"{names.SERVICE_LABEL} is the label by which the operator finds its pods; leave it "
            "out",
        )
    if (template.get("spec") or {}).get("restartPolicy") not in (None, "Always"):
        raise InvalidSpec(
            "spec.podTemplate.spec.restartPolicy",
            "a server's pod restarts always; remove restartPolicy",
        )
    grace = (template.get("spec") or {}).get("terminationGracePeriodSeconds")
    needed = grace_seconds(spec.drain.seconds)
    if isinstance(grace, int) and grace < needed:
        raise InvalidSpec(
            "spec.podTemplate.spec.terminationGracePeriodSeconds",
            f"{grace} would cut answers off: drain.seconds {spec.drain.seconds} needs {needed}; "
            "lower drain.seconds, or leave this out",
        )
    for container in (template.get("spec") or {}).get("containers") or []:
        if container["name"] == names.CONTAINER:
            _check_ports(container.get("ports"))


def _check_ports(ports: Any) -> None:
    """What is no port at all is the API server's to refuse."""
    for each in ports if isinstance(ports, list) else []:
        if not isinstance(each, Mapping) or each.get("protocol", "TCP") != "TCP":
            continue
        if each.get("containerPort") == names.PORT and each.get("name") not in (
            None,
            names.PORT_NAME,
        ):
            raise InvalidSpec(
                "spec.podTemplate.spec.containers",
                f"the probes and the Service find port {names.PORT} by its name "
                f"{names.PORT_NAME}; leave the name out",
            )
