"""The command line of `octavo serve`, and what the model's location asks of the pod."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from octavo_operator import names
from octavo_operator.model_uri import ClaimModel, FileModel, HubModel, ImageModel
from octavo_operator.spec import InferenceService

IMAGE_VOLUME_PATH = "/models/image"


@dataclass(frozen=True, slots=True)
class Location:
    """The word after `octavo serve`, and what the pod must mount and set for it."""

    model: str
    volume: dict[str, Any] | None = None
    mount: dict[str, Any] | None = None
    env: list[dict[str, Any]] = field(default_factory=list)


def locate(service: InferenceService) -> Location:
    match service.spec.model.source:
        case HubModel(repository, _):
            secret = service.spec.model.secret_ref
            reference = secret and {"secretKeyRef": {"name": secret.name, "key": secret.key}}
            env = [{"name": "HF_TOKEN", "valueFrom": reference}] if reference else []
            if (endpoint := service.spec.model.endpoint) is not None:
                env.append({"name": "HF_ENDPOINT", "value": endpoint})
            return Location(repository, env=env)
        case ClaimModel(claim, path):
            root = f"/models/{claim}"
            return Location(
                f"{root}/{path}".rstrip("/"),
                {"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}},
                {"name": "model", "mountPath": root, "readOnly": True},
            )
        case ImageModel(reference):
            return Location(
                IMAGE_VOLUME_PATH,
                {"name": "model", "image": {"reference": reference, "pullPolicy": "IfNotPresent"}},
                {"name": "model", "mountPath": IMAGE_VOLUME_PATH, "readOnly": True},
            )
        case FileModel(path):
            return Location(path)


def render_arguments(service: InferenceService) -> list[str]:
    """Flags of `octavo serve`, one "--name=value" an item, in a fixed order; extraArgs last."""
    engine = service.spec.engine
    source = service.spec.model.source
    arguments = [f"--port={names.PORT}", f"--shutdown-timeout={service.spec.drain.seconds}"]
    for name in service.spec.model.names or (service.name,):
        arguments.append(f"--served-model-name={name}")
    if isinstance(source, HubModel) and source.revision is not None:
        arguments.append(f"--revision={source.revision}")
    if (template := service.spec.model.chat_template) is not None:
        arguments.append(f"--chat-template={template}")
    if service.wants_gpu:
        arguments.append("--device=cuda")
        arguments.append(f"--gpu-memory-utilization={engine.gpu_memory_utilization}")
    else:
        arguments.append("--device=cpu")
    if engine.tensor_parallel_size != 1:
        arguments.append(f"--tensor-parallel-size={engine.tensor_parallel_size}")
    optional = {
        "dtype": None if engine.dtype == "auto" else engine.dtype,
        "max-model-len": engine.max_model_len,
        "max-num-seqs": engine.max_num_seqs,
        "max-num-batched-tokens": engine.max_num_batched_tokens,
        "block-size": engine.block_size,
        "kv-cache-memory-bytes": engine.kv_cache_memory_bytes,
    }
    arguments += [f"--{flag}={value}" for flag, value in optional.items() if value is not None]
    if not engine.enable_prefix_caching:
        arguments.append("--no-enable-prefix-caching")
    # extraArgs are the command line itself, variables included.
    return [*map(literal, arguments), *engine.extra_args]


def literal(text: str) -> str:
    """A word of a command line as it is: Kubernetes puts variables where one says $(NAME), the
    clients' key among them, and $$ is one $.
    """
    return text.replace("$(", "$$(")
