"""The platform's pod defaults as a template: over the rendered one, under the manifest's."""

from __future__ import annotations

from typing import Any

from octavo_operator import names
from octavo_operator.pod_defaults import PodDefaults
from octavo_operator.spec import InferenceService

_CA_FOLDER = "/etc/octavo/ca"
_CA_FILE = "bundle.crt"
_CA_VOLUME = "octavo-ca-bundle"


def render_defaults(defaults: PodDefaults, service: InferenceService) -> dict[str, Any]:
    """What is absent in the defaults is absent here. Variables are apart: see default_env."""
    inherited = {
        key: service.labels[key] for key in defaults.inherit_labels if key in service.labels
    }
    # What of all fields is the pods' under the same name.
    said = defaults.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)
    metadata = {
        key: value
        for key, value in (
            ("labels", {**said.pop("labels", {}), **inherited}),
            ("annotations", said.pop("annotations", {})),
        )
        if value
    }
    for key in ("inheritLabels", "env", "caBundle"):
        said.pop(key, None)
    if (bundle := defaults.ca_bundle) is not None:
        items = [{"key": bundle.key, "path": _CA_FILE}]
        volume = {
            "name": _CA_VOLUME,
            "configMap": {"name": bundle.config_map, "items": items},
        }
        mount = {"name": _CA_VOLUME, "mountPath": _CA_FOLDER, "readOnly": True}
        said["volumes"] = [volume]
        said["containers"] = [{"name": names.CONTAINER, "volumeMounts": [mount]}]
    return {"metadata": metadata, "spec": said}


def default_env(defaults: PodDefaults) -> list[dict[str, Any]]:
    """The server's variables, those that name the CA bundle first."""
    found = []
    if defaults.ca_bundle is not None:
        path = f"{_CA_FOLDER}/{_CA_FILE}"
        found = [{"name": name, "value": path} for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")]
    own = [each.model_dump(by_alias=True, exclude_none=True) for each in defaults.env]
    named = {each["name"] for each in own}
    return [*(each for each in found if each["name"] not in named), *own]
