"""Rules of the rendered objects that golden files alone would not explain."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.services import service

from octavo_operator import names
from octavo_operator.drain import PRE_STOP_SECONDS, STOP_SECONDS
from octavo_operator.render import render, render_deployment
from octavo_operator.render.deployment import choose_image
from octavo_operator.replicas import read_replicas


def deployment(**arguments: Any) -> dict[str, Any]:
    return render(service(**arguments))[0]


def pod(**arguments: Any) -> dict[str, Any]:
    result: dict[str, Any] = deployment(**arguments)["spec"]["template"]["spec"]
    return result


def container(**arguments: Any) -> dict[str, Any]:
    result: dict[str, Any] = pod(**arguments)["containers"][0]
    return result


def test_selector_reaches_the_pods() -> None:
    made, cluster_service, _ = render(service())
    labels = made["spec"]["template"]["metadata"]["labels"]
    assert made["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert cluster_service["spec"]["selector"].items() <= labels.items()


def test_replicas_are_always_there() -> None:
    assert deployment()["spec"]["replicas"] == 1
    assert render(service(), replicas=4)[0]["spec"]["replicas"] == 4
    assert render(service(), replicas=0)[0]["spec"]["replicas"] == 0
    assert render(service(replicas=2), replicas=4)[0]["spec"]["replicas"] == 2


def test_gpus_follow_tensor_parallel_size() -> None:
    made = container(engine={"tensorParallelSize": 4})
    assert made["resources"] == {"limits": {"nvidia.com/gpu": 4}}
    assert "--tensor-parallel-size=4" in made["args"]
    kept = container(engine={"tensorParallelSize": 4}, resources={"limits": {"memory": "9Gi"}})
    assert kept["resources"]["limits"] == {"memory": "9Gi", "nvidia.com/gpu": 4}


def test_named_gpus_win() -> None:
    slices = {"limits": {"nvidia.com/mig-1g.10gb": 1}}
    assert container(resources=slices)["resources"] == slices


@pytest.mark.parametrize(
    "cpu", [{"engine": {"device": "cpu"}}, {"resources": {"limits": {"nvidia.com/gpu": 0}}}]
)
def test_cpu(cpu: dict[str, Any]) -> None:
    made = deployment(**cpu)
    spec = made["spec"]["template"]["spec"]
    assert "resources" not in spec["containers"][0]
    assert "tolerations" not in spec
    assert "--device=cpu" in spec["containers"][0]["args"]
    rolling = made["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": 1, "maxUnavailable": 0}


def test_gpu_pods_do_not_surge() -> None:
    rolling = deployment()["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize(("drain", "seconds"), [({}, 300), ({"drain": {"seconds": 40}}, 40)])
def test_shutdown_times_add_up(drain: dict[str, Any], seconds: int) -> None:
    made = pod(**drain)
    server = made["containers"][0]
    assert server["lifecycle"]["preStop"] == {"sleep": {"seconds": PRE_STOP_SECONDS}}
    assert f"--shutdown-timeout={seconds}" in server["args"]
    assert made["terminationGracePeriodSeconds"] == PRE_STOP_SECONDS + seconds + STOP_SECONDS


def test_a_suspended_service_keeps_its_number() -> None:
    for arguments, live, kept in (
        ({}, None, "1"), ({}, 3, "3"), ({"replicas": 5}, 3, "5"),
        ({"autoscaling": {"minReplicas": 2, "maxReplicas": 4}}, None, "2"),
    ):  # fmt: skip
        made = render(service(suspend=True, **arguments), replicas=live)[0]
        assert made["spec"]["replicas"] == 0
        assert made["metadata"]["annotations"][names.RESUME_ANNOTATION] == kept
        assert read_replicas(made, True) == int(kept)
        back = render(service(**arguments), replicas=read_replicas(made, False))[0]
        assert back["spec"]["replicas"] == int(kept)
        assert names.RESUME_ANNOTATION not in back["metadata"]["annotations"]
    del made["metadata"]["annotations"][names.RESUME_ANNOTATION]  # by hand
    assert read_replicas(made, True) is None
    assert read_replicas(made, False) == 0
    # It shapes no pod: nothing rolls, then or later.
    assert made["spec"]["template"] == back["spec"]["template"]


def test_the_api_key_stays_a_reference() -> None:
    made = container(apiKeySecretRef={"name": "clients"})
    (variable,) = (each for each in made["env"] if each["name"] == "OCTAVO_API_KEY")
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "clients", "key": "api-key"}}
    assert not any("key" in word for word in made["args"])
    assert all(each["name"] != "OCTAVO_API_KEY" for each in container()["env"])


def test_cache() -> None:
    def volume(**cache: Any) -> dict[str, Any]:
        return next(each for each in pod(cache=cache)["volumes"] if each["name"] == "cache")

    assert volume() == {"name": "cache", "emptyDir": {}}
    assert volume(size="10Gi")["emptyDir"] == {"sizeLimit": "10Gi"}
    claim = volume(persistentVolumeClaim="weights")
    assert claim["persistentVolumeClaim"] == {"claimName": "weights"}


def test_the_services_type_and_annotations() -> None:
    made = render(service(service={"type": "LoadBalancer", "annotations": {"a/b": "c"}}))[1]
    assert made["spec"]["type"] == "LoadBalancer"
    assert made["metadata"]["annotations"] == {"a/b": "c"}
    assert "annotations" not in render(service())[1]["metadata"]


def test_pods_spread_unless_the_manifest_says_otherwise() -> None:
    (spread,) = pod()["topologySpreadConstraints"]
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert spread["labelSelector"]["matchLabels"] == names.selector("tiny")
    own = {"podTemplate": {"spec": {"topologySpreadConstraints": []}}}
    assert pod(**own)["topologySpreadConstraints"] == []


def test_one_pod_at_a_time_may_be_evicted() -> None:
    budget = render(service(replicas=3))[2]
    assert budget["kind"] == "PodDisruptionBudget"
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["selector"]["matchLabels"] == names.selector("tiny")


def test_startup_grows_with_the_model() -> None:
    def seconds(size: int) -> int:
        probe = container(engine={"tensorParallelSize": size})["startupProbe"]
        return int(probe["periodSeconds"] * probe["failureThreshold"])

    assert (seconds(1), seconds(2), seconds(64)) == (1800, 3600, 3 * 3600)
    large = deployment(engine={"tensorParallelSize": 8})
    assert large["spec"]["progressDeadlineSeconds"] > seconds(8)


def test_shared_memory_only_for_several_ranks() -> None:
    mounts = [
        each["mountPath"] for each in container(engine={"tensorParallelSize": 2})["volumeMounts"]
    ]
    assert "/dev/shm" in mounts
    assert "/dev/shm" not in [each["mountPath"] for each in container()["volumeMounts"]]


def test_model_locations() -> None:
    assert container(uri="hf://a/b@v1")["command"] == ["octavo", "serve", "a/b"]
    assert "--revision=v1" in container(uri="hf://a/b@v1")["args"]
    assert "--revision=v2" in container(uri="hf://a/b", model={"revision": "v2"})["args"]
    claim = pod(uri="pvc://weights/llama/8b")
    assert claim["containers"][0]["command"][2] == "/models/weights/llama/8b"
    volume = {"claimName": "weights", "readOnly": True}
    assert {"name": "model", "persistentVolumeClaim": volume} in claim["volumes"]
    image = pod(uri="oci://host/model:1")
    assert image["containers"][0]["command"][2] == "/models/image"
    assert image["volumes"][1]["image"]["reference"] == "host/model:1"


def test_token_stays_a_reference() -> None:
    env = container(model={"secretRef": {"name": "hub"}})["env"]
    reference = {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert {"name": "HF_TOKEN", "valueFrom": reference} in env


def test_manifest_variables_win() -> None:
    env = container(engine={"env": [{"name": "HOME", "value": "/elsewhere"}]})["env"]
    assert [each for each in env if each["name"] == "HOME"] == [
        {"name": "HOME", "value": "/elsewhere"}
    ]


def test_restricted_pod_security() -> None:
    made = pod()
    assert made["automountServiceAccountToken"] is False
    assert made["securityContext"]["runAsNonRoot"] is True
    assert made["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert made["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
    assert made["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(
    ("engine", "default", "expected"),
    [
        ({}, "octavo-server:1", "octavo-server:1"),
        ({"image": "mine:2"}, "octavo-server:1", "mine:2"),
        ({"version": "3"}, "octavo-server:1", "octavo-server:3"),
        ({"version": "3"}, "octavo-server", "octavo-server:3"),
        ({"version": "3"}, "host:5000/octavo-server", "host:5000/octavo-server:3"),
        ({"version": "3"}, "host:5000/octavo-server:1@sha256:ab", "host:5000/octavo-server:3"),
    ],
)
def test_images(engine: dict[str, Any], default: str, expected: str) -> None:
    assert choose_image(service(engine=engine), default) == expected


def test_revision_changes_with_the_pod_only() -> None:
    def revision(**arguments: Any) -> str:
        return str(deployment(**arguments)["metadata"]["annotations"]["octavo.dev/revision"])

    assert revision() == revision(replicas=5) == revision(autoscaling={"maxReplicas": 3})
    assert revision() != revision(engine={"maxModelLen": 64})
    assert revision() != revision(podTemplate={"spec": {"nodeSelector": {"a": "b"}}})


def test_podtemplate_cannot_take_our_labels() -> None:
    labels = {"app.kubernetes.io/instance": "other", "team": "x"}
    made = deployment(podTemplate={"metadata": {"labels": labels}})["spec"]["template"]
    assert made["metadata"]["labels"]["app.kubernetes.io/instance"] == "tiny"
    assert made["metadata"]["labels"]["team"] == "x"


def test_rendering_leaves_the_manifest_alone() -> None:
    one = service(podTemplate={"spec": {"tolerations": [{"key": "a"}]}})
    assert render(one) == render(one)
    assert one.spec.pod_template == {"spec": {"tolerations": [{"key": "a"}]}}


def test_only_extra_arguments_may_name_variables() -> None:
    """Names of models are shown to everybody; with the key in one it would be no secret."""
    key = "$(OCTAVO_API_KEY)"
    one = service(
        model={"names": [key], "chatTemplate": key}, engine={"extraArgs": [f"--seed={key}"]}
    )
    container = render_deployment(one, image="i", replicas=1)["spec"]["template"]["spec"]
    args = container["containers"][0]["args"]
    assert f"--served-model-name=${key}" in args and f"--chat-template=${key}" in args
    assert args[-1] == f"--seed={key}"
    one = service(uri="pvc://claim/$(HF_TOKEN)")
    container = render_deployment(one, image="i", replicas=1)["spec"]["template"]["spec"]
    assert container["containers"][0]["command"][2] == "/models/claim/$$(HF_TOKEN)"
