"""CRDs of others, as their projects publish them.

`python -m tests.cluster.crd_files` fetches them: the Go modules of crd_modules/go.mod, whose sums
go.sum pins, into Go's own cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from .build import MissingAssets, toolchain
from .cluster import Cluster, wait_for
from .kube_api import path_of

SOURCE = Path(__file__).parent / "crd_modules"
ROUTES = ("httproutes.gateway.networking.k8s.io", "inferencepools.inference.networking.k8s.io")
MONITORING = ("podmonitors.monitoring.coreos.com", "prometheusrules.monitoring.coreos.com")
_GATEWAY, _POOLS = "sigs.k8s.io/gateway-api", "sigs.k8s.io/gateway-api-inference-extension"
_MONITORING = "github.com/prometheus-operator/prometheus-operator"
FILES = {
    ROUTES[0]: (_GATEWAY, "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"),
    ROUTES[1]: (_POOLS, "config/crd/bases/inference.networking.k8s.io_inferencepools.yaml"),
    **{
        name: (
            _MONITORING,
            f"example/prometheus-operator-crd/monitoring.coreos.com_{name.split('.')[0]}.yaml",
        )
        for name in MONITORING
    },
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


def install(cluster: Cluster, names: tuple[str, ...]) -> None:
    """Until they are served."""
    files = fetch()
    for name in names:
        cluster.kubectl("apply", "--server-side", "-f", str(files[name]))
    for name in names:
        waited = ["wait", "--for=condition=Established", f"crd/{name}"]
        wait_for(name, lambda w=waited: cluster.kubectl(*w, check=False).returncode == 0)


def remove(cluster: Cluster, names: tuple[str, ...]) -> None:
    """Their objects go with them."""
    paths = [path_of(CRD_API, "CustomResourceDefinition", None, name) for name in names]
    for path in paths:
        cluster.client.delete(path)
    wait_for("no CRDs", lambda: not any(map(cluster.client.find, paths)), 60)


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
