"""All that the chart renders, as the API server sees it: strict dry runs, with others' CRDs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.charts.test_chart import CHART, MONITORING, helm
from tests.cluster.cluster import Cluster
from tests.cluster.crd_files import MONITORING as APIS
from tests.cluster.crd_files import install, remove
from tests.cluster.operator_process import NAMESPACE

# The namespace is there, and the CRD for those of its objects that are of it.
pytestmark = pytest.mark.usefixtures("operator", "monitoring_apis")

DRY = ["--dry-run=server", "--server-side", "--force-conflicts", "--validate=strict", "-o", "name"]
ALL = [
    *MONITORING, "--set=monitoring.labels.release=prometheus", "--set=routing.enabled=true",
    "--set=replicas=2", "--set=podDefaults.labels.team=a", "--set=caBundle.configMap=ca",
]  # fmt: skip


@pytest.fixture(scope="module")
def monitoring_apis(cluster: Cluster) -> Iterator[None]:
    install(cluster, APIS)
    yield
    remove(cluster, APIS)


def rendered(namespace: str, *values: str) -> str:
    done = helm("template", "own", str(CHART), f"--namespace={namespace}", *values)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("namespaced", [False, True])
def test_every_object_is_accepted(
    kubectl: Callable[..., Any], namespace: str, namespaced: bool
) -> None:
    # The pod of `helm test` is refused without its account.
    kubectl("create", "serviceaccount", "own-octavo-operator", "-n", namespace)
    values = [f"--set=watchNamespaces={{{namespace},{NAMESPACE}}}"] if namespaced else []
    said = kubectl("apply", "-f", "-", *DRY, stdin=rendered(namespace, *ALL, *values)).stdout
    kinds = [line.partition("/")[0] for line in said.splitlines()]
    assert kinds.count("podmonitor.monitoring.coreos.com") == 2
    assert kinds.count("prometheusrule.monitoring.coreos.com") == 1
    assert ("clusterrole.rbac.authorization.k8s.io" in kinds) is not namespaced
    assert {"deployment.apps", "poddisruptionbudget.policy", "configmap", "pod"} <= set(kinds)


@pytest.mark.parametrize(
    ("right", "wrong", "path"),
    [
        ("podMetricsEndpoints:", "podMetricEndpoints:", "podMetricEndpoints"),
        ("interval: 15s", "interval: soon", "interval"),
        ("sourceLabels: [", "sourceLabel: [", "relabelings[0].sourceLabel"),
        ("for: 10m", "for: ten minutes", "for"),
        ("alert: OctavoQueueGrows", "alarm: OctavoQueueGrows", "alarm"),
    ],
)
def test_a_dry_run_refuses_what_is_wrong(
    kubectl: Callable[..., Any], namespace: str, right: str, wrong: str, path: str
) -> None:
    """Else the test above could not fail."""
    text = rendered(namespace, *ALL)
    assert right in text
    done = kubectl("apply", "-f", "-", *DRY, stdin=text.replace(right, wrong), check=False)
    assert done.returncode != 0
    assert path in done.stderr
