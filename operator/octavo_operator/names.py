"""Every name, label and annotation that the operator writes or looks for."""

from __future__ import annotations

GROUP = "octavo.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "InferenceService"
PLURAL = "inferenceservices"

FIELD_MANAGER = "octavo"
CONTAINER = "octavo"
FETCH_CONTAINER = "octavo-fetch"
PORT = 8000
PORT_NAME = "http"
SERVICE_PORT = 80
GPU_RESOURCE = "nvidia.com/gpu"
"""What a GPU is called where an installation says nothing else."""

SERVICE_LABEL = f"{GROUP}/service"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"

REVISION_ANNOTATION = f"{GROUP}/revision"
"""Hash of the rendered pod template; on the Deployment and on each pod."""
RENDERED_ANNOTATION = f"{GROUP}/rendered"
"""The settings that the pods were rendered from, as JSON: the next rollout is compared with it."""
RESUME_ANNOTATION = f"{GROUP}/resume-replicas"
"""On the Deployment of a suspended service: how many pods come back."""
TEMPLATE_ANNOTATION = f"{GROUP}/pod-template"
"""The pod template of that revision, as JSON: applied again until somebody asks for another."""
DEFAULT_IMAGE_ANNOTATION = f"{GROUP}/default-image"
"""The operator's default image when the pods were rendered."""
UPGRADE_ANNOTATION = f"{GROUP}/upgrade"
"""On an InferenceService, any new value: render its pods as this operator does. On the Deployment:
the value that was followed."""
WAITING_ANNOTATION = f"{GROUP}/upgrade-waiting"
"""On the Deployment: what that would change."""
LAST_GOOD_ANNOTATION = f"{GROUP}/last-good"
"""On a Deployment whose present revision is not proven: the template to go back to, as JSON."""
SERVED_ANNOTATION = f"{GROUP}/served"
"""On a Deployment one of whose pods has been ready: with which revision."""
FAILED_ANNOTATION = f"{GROUP}/failed"
"""On a Deployment that went back: which settings failed, and why, as JSON."""
PLAN_ANNOTATION = f"{GROUP}/rollout-plan"
"""How the pods of the present revision replace their elders, and why, as JSON."""
EXTRAS_ANNOTATION = f"{GROUP}/extras"
"""On the Deployment: the kinds of further objects that the service has, or had."""
CHANGE_CAUSE_ANNOTATION = "kubernetes.io/change-cause"
"""Why the last rollout happened; `kubectl rollout history` prints it."""

DEFAULT_IMAGE = "octavo-server:0.1.0"


def is_gpu(resource: str) -> bool:
    """Whether it is some vendor's GPU, or a slice of one."""
    return "/" in resource and ("gpu" in resource or "/mig-" in resource)


def memory_label(gpu_resource: str) -> str:
    """The nodes' label of the MiB of one GPU, or slice, from GPU feature discovery."""
    return f"{gpu_resource}.memory"


def labels(name: str) -> dict[str, str]:
    """The labels of every object that belongs to the InferenceService `name`."""
    return {
        "app.kubernetes.io/name": "octavo",
        "app.kubernetes.io/instance": name,
        MANAGED_BY_LABEL: "octavo",
        SERVICE_LABEL: name,
    }


def selector(name: str) -> dict[str, str]:
    """What a Deployment selects its pods by. It can never change, so it is as small as possible."""
    return {SERVICE_LABEL: name}


def selector_text(name: str) -> str:
    return f"{SERVICE_LABEL}={name}"


def url(name: str, namespace: str) -> str:
    """The base URL that an OpenAI client inside the cluster is given."""
    return f"http://{name}.{namespace}.svc/v1"
