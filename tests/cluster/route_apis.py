"""The CRDs of HTTPRoute and InferencePool and the operator's rights on them, put in and taken away.

`python -m tests.cluster.route_apis` fetches the CRDs: the Go modules of route_crds/go.mod, whose
sums go.sum pins, into Go's own cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from .build import MissingAssets, toolchain
from .cluster import Cluster, wait_for
from .images import ROOT
from .kube_api import path_of

SOURCE = Path(__file__).parent / "route_crds"
RIGHTS = ROOT / "charts" / "octavo" / "files" / "rbac-routing.yaml"
FILES = {
    "httproutes.gateway.networking.k8s.io": (
        "sigs.k8s.io/gateway-api",
        "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",
    ),
    "inferencepools.inference.networking.k8s.io": (
        "sigs.k8s.io/gateway-api-inference-extension",
        "config/crd/bases/inference.networking.k8s.io_inferencepools.yaml",
    ),
}
CRD_API = "apiextensions.k8s.io/v1"


def fetch() -> dict[str, Path]:
    """The file of each CRD by its name. Raises MissingAssets."""
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
    done = subprocess.run(
        [toolchain(), "mod", "download", "-json"],
        cwd=SOURCE, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise MissingAssets(f"`go mod download` failed in {SOURCE}: {done.stderr or done.stdout}")
    folders: dict[str, Path] = {}
    decoder, text = json.JSONDecoder(), done.stdout.strip()
    while text:
        module, end = decoder.raw_decode(text)
        folders[module["Path"]] = Path(module["Dir"])
        text = text[end:].lstrip()
    return {name: folders[module] / path for name, (module, path) in FILES.items()}


class RouteApis:
    """Of one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def install(self, *names: str) -> None:
        """These CRDs, or both; until they are served."""
        files = fetch()
        for name in names or FILES:
            self._cluster.kubectl("apply", "--server-side", "-f", str(files[name]))
        for name in names or FILES:
            waited = ["wait", "--for=condition=Established", f"crd/{name}"]
            wait_for(name, lambda w=waited: self._cluster.kubectl(*w, check=False).returncode == 0)

    def remove(self, *names: str) -> None:
        """Their objects go with them."""
        paths = [path_of(CRD_API, "CustomResourceDefinition", None, n) for n in names or FILES]
        for path in paths:
            self._cluster.client.delete(path)
        wait_for("no CRDs", lambda: not any(map(self._cluster.client.find, paths)), 60)

    def allow(self) -> None:
        """What the chart gives the operator with routing.enabled."""
        self._cluster.kubectl("apply", "-f", str(RIGHTS))

    def forbid(self) -> None:
        self._cluster.kubectl("delete", "--ignore-not-found", "-f", str(RIGHTS))


def main() -> int:
    try:
        for path in fetch().values():
            print(path)
    except MissingAssets as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
