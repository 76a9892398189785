"""InferenceServices and pods for these tests, in few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo_operator import names
from octavo_operator.facts import Facts, PodFacts
from octavo_operator.spec import InferenceService, parse

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
MANIFESTS = [*EXAMPLES, *sorted((Path(__file__).parent / "manifests").glob("*.yaml"))]
"""The examples, and what else a manifest can say."""

NOW = "2026-01-02T03:04:05Z"
EARLIER = "2026-01-01T00:00:00Z"


def manifest(name: str = "tiny", uri: str = "hf://org/tiny", **spec: Any) -> dict[str, Any]:
    model = {"uri": uri, **spec.pop("model", {})}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": "ns", "uid": "u1", "generation": 3},
        "spec": {"model": model, **spec},
    }


def service(**arguments: Any) -> InferenceService:
    return parse(manifest(**arguments))


def pod(revision: str = "new", *, ready: bool = False, problem: Any = None) -> PodFacts:
    return PodFacts(name=f"pod-{revision}", revision=revision, ready=ready, problem=problem)


def facts(*pods: PodFacts, **others: Any) -> Facts:
    return Facts(**{"wanted": 1, "revision": "new", "cause": "why", "pods": pods, **others})
