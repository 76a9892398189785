"""Would the API server let pods of a template in? It is asked before those that serve make way.

A Deployment is taken whatever its pods are: Pod Security, the namespace's limits and webhooks judge
pods one by one, when the old ones may be gone already. A dry run makes none.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from octavo_operator.conditions import PODS_REFUSED, WORKLOAD_READY, Problem
from octavo_operator.kube import Kube, KubeError
from octavo_operator.names import UPGRADE_ANNOTATION

log = logging.getLogger(__name__)


class Admission:
    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    async def refuses(
        self, namespace: str, name: str, template: Mapping[str, Any]
    ) -> Problem | None:
        """Why no pod of the service `name` with this template is let in; None if one is, or if
        nobody can tell (a webhook that knows no dry run, a right that is missing).

        KubeUnreachable, and KubeError of an API server that is busy or ill.
        """
        metadata = {**template.get("metadata", {}), "namespace": namespace, "name": f"{name}-trial"}
        pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": metadata}
        try:
            await self._kube.create(pod, dry_run=True)
        except KubeError as error:
            if error.code == 429 or error.code >= 500:
                raise
            if is_refusal(error):
                return Problem(
                    WORKLOAD_READY,
                    PODS_REFUSED,
                    f"the API server refuses pods with the new settings, so that what runs stays: "
                    f"{error}. A new value of the annotation {UPGRADE_ANNOTATION} tries it all the "
                    "same",
                )
            log.info("nobody can tell whether its new pods would be let in: %s", error)
        return None


def is_refusal(error: KubeError) -> bool:
    """Whether it is a word about the pod."""
    words = str(error)
    if "denied the request" in words:  # a webhook's or a policy's, whatever its code
        return True
    if error.code == 422:
        return True
    # Our own lack of the right is none, and a quota may be held by the pods that will be gone.
    other = 'cannot create resource "pods"', "exceeded quota", "does not support dry run"
    return error.code == 403 and not any(each in words for each in other)
