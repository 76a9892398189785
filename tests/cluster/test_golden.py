"""What the golden files hold, as the API server sees it: dry runs of what the operator applies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.images import ROOT
from tests.cluster.kube_api import Client, path_of_object
from tests.cluster.route_apis import RouteApis
from tests.operator.services import MANIFESTS

GOLDEN = ROOT / "tests" / "operator" / "golden"
SSA = "application/apply-patch+yaml"
DRY = "dryRun=All&fieldManager=octavo&force=true&fieldValidation=Strict"

# The CRD is the operator's to install.
pytestmark = pytest.mark.usefixtures("operator")


def objects(path: Path, namespace: str) -> list[dict[str, Any]]:
    found = [each for each in yaml.safe_load_all(path.read_text()) if each is not None]
    for each in found:
        each["metadata"]["namespace"] = namespace
    return found


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_manifest_and_its_objects_are_accepted(
    client: Client, namespace: str, manifest: Path, route_apis: RouteApis
) -> None:
    if "kind: HTTPRoute" in (GOLDEN / manifest.name).read_text():
        route_apis.install()
    for each in objects(manifest, namespace) + objects(GOLDEN / manifest.name, namespace):
        client.patch(f"{path_of_object(each)}?{DRY}", each, SSA)


def test_a_dry_run_refuses_what_is_wrong(client: Client, namespace: str) -> None:
    """Else the test above could not fail."""
    deployment = objects(GOLDEN / MANIFESTS[0].name, namespace)[0]
    deployment["spec"]["template"]["spec"]["containers"][0]["portz"] = []
    with pytest.raises(Exception, match="portz"):
        client.patch(f"{path_of_object(deployment)}?{DRY}", deployment, SSA)
