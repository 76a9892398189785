"""Typed errors: each is one clear line for a person and one machine-readable reason.

`StartupError.reason` travels to the operator in the pod's termination message and becomes the
reason of a condition, so the names below are API.
"""

from __future__ import annotations


class OctavoError(Exception):
    """Base of every error that a person may meet; `str(error)` is one sentence that says what to
    do.
    """


class InvalidRequest(OctavoError):
    """A client's mistake: HTTP 400 with OpenAI's error body.

    `param` names the offending field of the request, None if it concerns the whole body.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class EngineDead(OctavoError):
    """The engine process ended or failed; every request in flight ends with this."""


class StepOutOfMemory(OctavoError):
    """A step found no memory on the device: its requests end with this, the engine goes on."""


class StartupError(OctavoError):
    """The server cannot start; `reason` is a CamelCase word, `exit_code` the process's."""

    reason = "StartupFailed"
    exit_code = 1


class ModelNotFound(StartupError):
    """No such folder, file or Hub repository (or revision)."""

    reason = "ModelNotFound"


class GatedModel(StartupError):
    """The Hub refuses access without (or with this) token."""

    reason = "GatedModel"


class HubUnreachable(StartupError):
    """The Hub did not answer or answered 5xx; worth trying again, unlike ModelNotFound."""

    reason = "HubUnreachable"


class UnsupportedModel(StartupError):
    """The architecture, quantisation or file is not one that Octavo serves."""

    reason = "UnsupportedModel"


class CorruptModel(StartupError):
    """Files are missing, truncated, or their tensors do not have the config's shapes."""

    reason = "CorruptModel"


class OutOfMemory(StartupError):
    """Weights, activations or the smallest useful KV cache do not fit."""

    reason = "OutOfMemory"


class InvalidSettings(StartupError):
    """Flags that contradict each other, the model or the machine."""

    reason = "InvalidSettings"
    exit_code = 2
