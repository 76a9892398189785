"""The NetworkPolicy: who may reach the pods, where the manifest says so."""

from __future__ import annotations

from typing import Any

from octavo_operator import names
from octavo_operator.spec import InferenceService

NAMESPACE_LABEL = "kubernetes.io/metadata.name"
"""Every namespace has it, and nobody can give one another's."""


def render_network_policy(service: InferenceService, operator_namespace: str) -> dict[str, Any]:
    """For a service with spec.networkPolicy. `operator_namespace` "": it is outside the cluster."""
    policy = service.spec.network_policy
    assert policy is not None
    pods = {"matchLabels": names.selector(service.name)}
    peers: list[dict[str, Any]] = [{"podSelector": pods}]
    if operator_namespace:
        # It asks the pods for their load.
        own = {"matchLabels": {NAMESPACE_LABEL: operator_namespace}}
        peers.insert(0, {"namespaceSelector": own})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": service.name,
            "namespace": service.namespace,
            "labels": names.labels(service.name),
        },
        "spec": {
            "podSelector": pods,
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [*peers, *(dict(each) for each in policy.from_)],
                    "ports": [{"port": names.PORT, "protocol": "TCP"}],
                }
            ],
        },
    }
