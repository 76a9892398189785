from pathlib import Path
from typing import Any

import pytest
from tests.operator.local.pods import container, make_pod

from octavo_operator.local.supported import unapplied_fields, unsupported_fields
from octavo_operator.local.workloads import plan
from octavo_operator.manifests import read_documents

# As the API server completes a pod that has none of this, ServiceAccount admission included.
DEFAULTED = make_pod(
    container(
        ["x"],
        imagePullPolicy="IfNotPresent",
        terminationMessagePath="/dev/termination-log",
        terminationMessagePolicy="File",
        resources={},
        ports=[{"name": "http", "containerPort": 8000, "protocol": "TCP"}],
        volumeMounts=[
            {
                "name": "kube-api-access",
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                "readOnly": True,
            }
        ],
        livenessProbe={
            "httpGet": {"path": "/", "port": "http", "scheme": "HTTP"},
            "timeoutSeconds": 1,
            "periodSeconds": 10,
            "successThreshold": 1,
            "failureThreshold": 3,
        },
    ),
    restartPolicy="Always",
    terminationGracePeriodSeconds=30,
    dnsPolicy="ClusterFirst",
    serviceAccountName="default",
    serviceAccount="default",
    nodeName="node-1",
    securityContext={},
    schedulerName="default-scheduler",
    tolerations=[{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}],
    priority=0,
    enableServiceLinks=True,
    preemptionPolicy="PreemptLowerPriority",
    hostNetwork=False,
    volumes=[
        {
            "name": "kube-api-access",
            "projected": {
                "defaultMode": 420,
                "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": []}},
                    {"downwardAPI": {"items": []}},
                ],
            },
        }
    ],
)


def test_what_the_api_server_adds_is_accepted() -> None:
    assert unsupported_fields(DEFAULTED) == []


@pytest.mark.parametrize("file", sorted(Path("examples").glob("*.yaml")), ids=lambda f: f.name)
def test_what_the_operator_renders_is_accepted(file: Path) -> None:
    pods = plan(read_documents([str(file)]), None).pods
    assert pods
    assert [unsupported_fields(pod, ["model"]) for pod in pods] == [[]] * len(pods)


@pytest.mark.parametrize(
    ("fields", "spec", "paths"),
    [
        ({}, {"hostNetwork": True}, ["spec.hostNetwork"]),
        ({}, {"shareProcessNamespace": True}, ["spec.shareProcessNamespace"]),
        ({}, {"readinessGates": [{"conditionType": "x"}]}, ["spec.readinessGates"]),
        ({"stdin": True}, {}, ["spec.containers[0].stdin"]),
        ({"lifecycle": {"postStart": {}}}, {}, []),
        (
            {"lifecycle": {"postStart": {"exec": {"command": ["x"]}}}},
            {},
            ["spec.containers[0].lifecycle.postStart"],
        ),
        ({"readinessProbe": {"grpc": {"port": 1}}}, {}, ["spec.containers[0].readinessProbe.grpc"]),
        (
            {"ports": [{"containerPort": 1, "hostPort": 2}]},
            {},
            ["spec.containers[0].ports[0].hostPort"],
        ),
        (
            {},
            {"initContainers": [{"name": "i", "command": ["x"], "restartPolicy": "Always"}]},
            ["spec.initContainers[0].restartPolicy"],
        ),
        (
            {},
            {
                "volumes": [
                    {"name": "a", "emptyDir": {}},
                    {"name": "b", "persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "d", "emptyDir": {"medium": "HugePages"}},
                ]
            },
            [
                "spec.volumes[1].persistentVolumeClaim",
                "spec.volumes[2].emptyDir.medium: HugePages",
            ],
        ),
    ],
)
def test_everything_else_is_named(fields: dict[str, Any], spec: dict, paths: list[str]) -> None:
    assert unsupported_fields(make_pod(container(["x"], **fields), **spec)) == paths


def test_a_provided_volume_is_accepted() -> None:
    pod = make_pod(container(["x"]), volumes=[{"name": "m", "image": {"reference": "r"}}])
    assert unsupported_fields(pod) == ["spec.volumes[0].image"]
    assert unsupported_fields(pod, ["m"]) == []


def test_what_has_no_effect_is_told() -> None:
    pod = make_pod(container(["x"], resources={"limits": {"cpu": 1}}), securityContext={"a": 1})
    assert unapplied_fields(pod) == ["spec.securityContext", "spec.containers[0].resources"]
    pod = make_pod(container(["x"]), volumes=[{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}])
    assert unapplied_fields(pod) == ["spec.volumes[0].emptyDir.sizeLimit"]
