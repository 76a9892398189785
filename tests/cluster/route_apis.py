"""The CRDs of HTTPRoute and InferencePool and the operator's rights on them, put in and out."""

from __future__ import annotations

from .cluster import Cluster
from .crd_files import ROUTES, install, remove
from .images import ROOT

RIGHTS = ROOT / "charts" / "octavo" / "files" / "rbac-routing.yaml"


class RouteApis:
    """Of one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def install(self, *names: str) -> None:
        """These CRDs, or both; until they are served."""
        install(self._cluster, names or ROUTES)

    def remove(self, *names: str) -> None:
        """Their objects go with them."""
        remove(self._cluster, names or ROUTES)

    def allow(self) -> None:
        """What the chart gives the operator with routing.enabled."""
        self._cluster.kubectl("apply", "-f", str(RIGHTS))

    def forbid(self) -> None:
        self._cluster.kubectl("delete", "--ignore-not-found", "-f", str(RIGHTS))
