"""Where a model lies: the uri of a manifest, taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass

_HUB = re.compile(
    r"([A-Za-z0-9][-A-Za-z0-9._]*(?:/[A-Za-z0-9][-A-Za-z0-9._]*)?)(?:@([-A-Za-z0-9._/]+))?"
)
_IMAGE = re.compile(r"[A-Za-z0-9][-A-Za-z0-9._:/@]*")
_CLAIM = re.compile(r"([a-z0-9](?:[-a-z0-9.]*[a-z0-9])?)(?:/([^@]*))?")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository of the Hugging Face Hub."""

    repository: str
    revision: str | None


@dataclass(frozen=True, slots=True)
class ClaimModel:
    """A folder (or .gguf file) in a PersistentVolumeClaim; `path` is relative, "" is its root."""

    claim: str
    path: str


@dataclass(frozen=True, slots=True)
class FileModel:
    """An absolute path that the server's image (or a volume of the podTemplate) holds."""

    path: str


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A container image that holds the model's files at its root."""

    reference: str


ModelUri = HubModel | ClaimModel | FileModel | ImageModel


def parse_uri(uri: str) -> ModelUri:
    """ValueError with the sentence that the CRD's rules use, if it is none of the four kinds."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in ("hf", "pvc", "file", "oci"):
        raise ValueError("start with hf://, pvc://, file:// or oci://")
    if "/../" in uri or uri.endswith("/.."):
        raise ValueError('the path must not contain ".."')
    if scheme == "hf":
        if (hub := _HUB.fullmatch(rest)) is None:
            raise ValueError("write a Hub model as hf://ORG/NAME or hf://ORG/NAME@REVISION")
        return HubModel(hub[1], hub[2])
    if scheme == "pvc":
        if (claim := _CLAIM.fullmatch(rest)) is None:
            raise ValueError("write a claim's model as pvc://CLAIM/PATH/IN/THE/CLAIM")
        return ClaimModel(claim[1], (claim[2] or "").strip("/"))
    if scheme == "file":
        if not rest.startswith("/") or rest.startswith("//") or rest == "/":
            raise ValueError("write a file as file:///ABSOLUTE/PATH (three slashes)")
        return FileModel(rest)
    if _IMAGE.fullmatch(rest) is None:
        raise ValueError("write an image's model as oci://REGISTRY/REPOSITORY:TAG")
    return ImageModel(rest)
