"""The condition types and reasons of an InferenceService. They are API: programs match on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Types.
READY = "Ready"
MODEL_READY = "ModelReady"
WORKLOAD_READY = "WorkloadReady"
AUTOSCALING_READY = "AutoscalingReady"
FITS_ACCELERATOR = "FitsAccelerator"
ROUTING_READY = "RoutingReady"

# Reasons of True.
SERVING = "Serving"
LOADED = "Loaded"
ALL_REPLICAS_READY = "AllReplicasReady"
SOME_REPLICAS_READY = "SomeReplicasReady"
SCALED_TO_ZERO = "ScaledToZero"
FITS = "Fits"
NO_ACCELERATOR = "NoAccelerator"
ROUTED = "Routed"
SCALING = "Scaling"

# Reasons of a pass through: not ready yet, nothing wrong.
NO_POD = "NoPod"
DOWNLOADING = "Downloading"
LOADING = "Loading"
PROGRESSING = "Progressing"
ROLLING_OUT = "RollingOut"
SUSPENDED = "Suspended"

# Reasons of a failure that the manifest's owner can do something about.
INVALID_SPEC = "InvalidSpec"
INVALID_POD_TEMPLATE = "InvalidPodTemplate"
OBJECT_REFUSED = "ObjectRefused"
NAME_CONFLICT = "NameConflict"
FORBIDDEN = "Forbidden"
PODS_REFUSED = "PodsRefused"
UNSCHEDULABLE = "Unschedulable"
IMAGE_PULL_BACK_OFF = "ImagePullBackOff"
CONTAINER_CONFIG_ERROR = "ContainerConfigError"
CRASH_LOOP_BACK_OFF = "CrashLoopBackOff"
EVICTED = "Evicted"
STALLED = "Stalled"
INTERNAL_ERROR = "InternalError"
INVALID_TENSOR_PARALLEL_SIZE = "InvalidTensorParallelSize"
DOES_NOT_FIT = "DoesNotFit"
ROLLED_BACK = "RolledBack"
MISSING_CRDS = "MissingCRDs"
ROUTE_REFUSED = "RouteRefused"
NOT_ACCEPTED = "NotAccepted"
REFS_NOT_RESOLVED = "RefsNotResolved"

NO_METRICS = "NoMetrics"
SECOND_AUTOSCALER = "SecondAutoscaler"
AUTOSCALER_REFUSED = "AutoscalerRefused"
TARGET_UNUSABLE = "TargetUnusable"

# The reason of an event alone.
FOREIGN_CHANGE = "ForeignChange"

# Reasons why FitsAccelerator is Unknown: nothing waits for it then.
GATED_MODEL = "GatedModel"
MODEL_NOT_READABLE = "ModelNotReadable"
HUB_UNREACHABLE = "HubUnreachable"
NO_GPU_MEMORY_LABELS = "NoGpuMemoryLabels"
BEING_READ = "BeingRead"

# The reason why RoutingReady is Unknown.
AWAITING_GATEWAY = "AwaitingGateway"

# Reasons why AutoscalingReady is Unknown.
AWAITING_AUTOSCALER = "AwaitingAutoscaler"
NOT_MANAGED = "NotManaged"

# Reasons that the server itself reports when it cannot start (octavo_server.errors has them all;
# any other CamelCase word it sends is passed on).
OUT_OF_MEMORY = "OutOfMemory"

PASSING = frozenset(
    {NO_POD, DOWNLOADING, LOADING, PROGRESSING, ROLLING_OUT, SCALED_TO_ZERO, SUSPENDED}
)
"""Reasons that no warning is due for."""

Status = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition without its times; `message` is one sentence for people."""

    type: str
    status: Status
    reason: str
    message: str

    @property
    def failing(self) -> bool:
        return self.status == "False" and self.reason not in PASSING


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that keeps `type` (MODEL_READY or WORKLOAD_READY) from being True."""

    type: str
    reason: str
    message: str
