"""What a manifest is refused for, and with which words."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.services import manifest, service

from octavo_operator.model_uri import ClaimModel, FileModel, HubModel, ImageModel, parse_uri
from octavo_operator.quantity import parse_quantity
from octavo_operator.spec import InvalidSpec, parse


@pytest.mark.parametrize(
    ("change", "path", "problem"),
    [
        ({"uri": "s3://bucket"}, "spec.model.uri", "start with hf://"),
        ({"uri": "hf://a/b/c"}, "spec.model.uri", "hf://ORG/NAME"),
        ({"uri": "file://models/x"}, "spec.model.uri", "three slashes"),
        ({"uri": "oci://"}, "spec.model.uri", "oci://REGISTRY"),
        ({"uri": "pvc://Claim/x"}, "spec.model.uri", "pvc://CLAIM/PATH"),
        ({"uri": "file:///models/../etc"}, "spec.model.uri", '".."'),
        ({"uri": "hf://a/b@v1", "model": {"revision": "v1"}}, "spec.model.revision", "twice"),
        ({"uri": "file:///x", "model": {"revision": "v1"}}, "spec.model.revision", "Hub model"),
        (
            {"uri": "file:///x", "model": {"secretRef": {"name": "s"}}},
            "spec.model.secretRef",
            "Hub",
        ),
        ({"model": {"secretRef": {}}}, "spec.model.secretRef.name", "is required"),
        ({"model": {"names": ["a", "a"]}}, "spec.model.names[1]", "twice"),
        ({"model": {"names": ["a,b"]}}, "spec.model.names[0]", "does not match"),
        ({"model": {"nmes": []}}, "spec.model.nmes", "unknown field"),
        ({"engine": {"maxModelLn": 1}}, "spec.engine.maxModelLn", "unknown field"),
        ({"engine": {"maxModelLen": "1"}}, "spec.engine.maxModelLen", "type integer, not string"),
        ({"engine": {"maxModelLen": True}}, "spec.engine.maxModelLen", "not boolean"),
        ({"engine": {"maxModelLen": 0}}, "spec.engine.maxModelLen", "at least 16"),
        ({"engine": {"maxModelLen": -2}}, "spec.engine.maxModelLen", "less than -1"),
        ({"engine": {"gpuMemoryUtilization": 1.2}}, "spec.engine.gpuMemoryUtilization", "0.98"),
        ({"engine": {"tensorParallelSize": 0}}, "spec.engine.tensorParallelSize", "less than 1"),
        ({"engine": {"dtype": "int8"}}, "spec.engine.dtype", "not one of auto"),
        ({"engine": {"blockSize": 17}}, "spec.engine.blockSize", "not one of 16"),
        ({"engine": {"kvCacheMemory": "lots"}}, "spec.engine.kvCacheMemory", "does not match"),
        ({"engine": {"kvCacheMemory": 1}}, "spec.engine.kvCacheMemory", "more than 1Mi"),
        ({"engine": {"image": "a", "version": "b"}}, "spec.engine.version", "not both"),
        (
            {"engine": {"extraArgs": ["--dtype=float32"]}},
            "spec.engine.extraArgs",
            "field of its own",
        ),
        ({"engine": {"extraArgs": ["--model=/x"]}}, "spec.engine.extraArgs", "model.uri"),
        ({"engine": {"extraArgs": ["--api-key", "k"]}}, "spec.engine.extraArgs", "apiKeySecretRef"),
        ({"engine": {"extraArgs": ["--port", "1"]}}, "spec.engine.extraArgs", "operator sets"),
        ({"engine": {"env": [{"value": "x"}]}}, "spec.engine.env[0].name", "is required"),
        ({"engine": {"env": [{"name": "A"}, {"name": "A"}]}}, "spec.engine.env[1]", "twice"),
        (
            {"engine": {"env": [{"name": "A", "value": "x", "valueFrom": {}}]}},
            "spec.engine.env[0].valueFrom",
            "not both",
        ),
        (
            {"engine": {"env": [{"name": "A", "valueFrom": {}}]}},
            "spec.engine.env[0].valueFrom",
            "one",
        ),
        (
            {"uri": "file:///m", "model": {"endpoint": "http://mirror"}},
            "spec.model.endpoint",
            "belongs to a Hub model",
        ),
        ({"model": {"endpoint": "mirror"}}, "spec.model.endpoint", "does not match"),
        ({"engine": {"extraArgs": ["--chat-template=x"]}}, "spec.engine.extraArgs", "field"),
        ({"replicas": -1}, "spec.replicas", "less than 0"),
        ({"autoscaling": {}}, "spec.autoscaling.maxReplicas", "is required"),
        (
            {"autoscaling": {"minReplicas": 3, "maxReplicas": 2}},
            "spec.autoscaling.minReplicas",
            "must not exceed",
        ),
        ({"resources": {"limits": {"cpu": -1}}}, "spec.resources.limits.cpu", "does not match"),
        (
            {"resources": {"requests": {"nvidia.com/gpu": 2}}},
            "spec.resources.requests",
            "in limits",
        ),
        ({"resources": {"limits": {"nvidia.com/gpu": "500m"}}}, "spec.resources.limits", "whole"),
        ({"resources": {"limits": {"amd.com/gpu": "1k"}}}, "spec.resources.limits", "whole"),
        (
            {"resources": {"limits": {"nvidia.com/gpu": 0}}, "engine": {"device": "cuda"}},
            "spec.resources.limits",
            "is cuda",
        ),
        (
            {"resources": {"limits": {"nvidia.com/gpu": 1}}, "engine": {"tensorParallelSize": 2}},
            "spec.resources.limits",
            "needs 2",
        ),
        (
            {
                "podTemplate": {
                    "spec": {
                        "containers": [
                            {"name": "octavo", "ports": [{"containerPort": 8000, "name": "web"}]}
                        ]
                    }
                }
            },
            "spec.podTemplate.spec.containers",
            "leave the name out",
        ),
        (
            {"cache": {"persistentVolumeClaim": "weights", "size": "1Gi"}},
            "spec.cache.size",
            "not both",
        ),
        (
            {"cache": {"persistentVolumeClaim": "No_Dns"}},
            "spec.cache.persistentVolumeClaim",
            "match",
        ),
        (
            {
                "apiKeySecretRef": {"name": "clients"},
                "engine": {"env": [{"name": "OCTAVO_API_KEY", "value": "x"}]},
            },
            "spec.apiKeySecretRef",
            "given twice",
        ),
        ({"drain": {"seconds": 7201}}, "spec.drain.seconds", "7200"),
        ({"service": {"type": "ExternalName"}}, "spec.service.type", "ClusterIP"),
        ({"suspend": "yes"}, "spec.suspend", "boolean"),
        ({"resources": {"limits": {"cpu": "many"}}}, "spec.resources.limits.cpu", "does not match"),
        (
            {"podTemplate": {"metadata": {"labels": {"octavo.dev/service": "x"}}}},
            "spec.podTemplate.metadata.labels",
            "leave it out",
        ),
        (
            {"podTemplate": {"spec": {"restartPolicy": "Never"}}},
            "spec.podTemplate.spec.restartPolicy",
            "always",
        ),
        (
            {"podTemplate": {"spec": {"terminationGracePeriodSeconds": 30}}},
            "spec.podTemplate.spec.terminationGracePeriodSeconds",
            "needs 320",
        ),
        (
            {"podTemplate": {"spec": {"containers": [{"image": "x"}]}}},
            "spec.podTemplate.spec.containers[0].name",
            "is required",
        ),
    ],
)
def test_refused(change: dict[str, Any], path: str, problem: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        service(**change)
    assert caught.value.path == path
    assert problem in caught.value.problem


@pytest.mark.parametrize("name", ["qwen3-0.6b", "70b", "Big", "a" * 53, "x-", ""])
def test_names_that_are_no_dns_labels(name: str) -> None:
    with pytest.raises(InvalidSpec, match="DNS name"):
        service(name=name)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"apiVersion": "octavo.dev/v1", "kind": "InferenceService"},
        {"apiVersion": "octavo.dev/v1alpha1", "kind": "InferenceService"},
        {**manifest(), "spec": None},
        {**manifest(), "spec": []},
        {**manifest(), "spec": {"model": "hf://a/b"}},
        {**manifest(), "extra": 1},
        {**manifest(), "metadata": []},
    ],
)
def test_shapeless_manifests(broken: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec):
        parse(broken)


def test_defaults() -> None:
    one = service()
    assert one.spec.engine.tensor_parallel_size == 1
    assert one.spec.replicas is None
    assert one.first_replicas == 1
    assert service(autoscaling={"minReplicas": 3, "maxReplicas": 5}).first_replicas == 3
    assert service(autoscaling={"minReplicas": 0, "maxReplicas": 5}).first_replicas == 1
    assert service(replicas=0, autoscaling={"maxReplicas": 5}).first_replicas == 0
    assert parse({**manifest(), "metadata": {"name": "x"}}).namespace == "default"


def test_nulls_are_absent() -> None:
    one = service(engine={"maxModelLen": None}, replicas=None)
    assert one.spec.engine.max_model_len is None


def test_gpus() -> None:
    none = {"limits": {"nvidia.com/gpu": 0}}
    assert service().wants_gpu
    assert not service(engine={"device": "cpu"}).wants_gpu
    assert not service(resources=none).wants_gpu
    assert service(resources={"limits": {"memory": "1Gi"}}).wants_gpu
    assert service(resources={"limits": {"nvidia.com/gpu": 2}}).wants_gpu


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("hf://org/name", HubModel("org/name", None)),
        ("hf://gpt2", HubModel("gpt2", None)),
        ("hf://org/name@refs/pr/1", HubModel("org/name", "refs/pr/1")),
        ("pvc://claim", ClaimModel("claim", "")),
        ("pvc://claim/a/b/", ClaimModel("claim", "a/b")),
        ("file:///a/b.gguf", FileModel("/a/b.gguf")),
        ("oci://registry:5000/a/b:1", ImageModel("registry:5000/a/b:1")),
    ],
)
def test_uris(uri: str, source: object) -> None:
    assert parse_uri(uri) == source


def test_quantities() -> None:
    values = ["4", 4, "500m", "1k", "1.5Gi", "2Ti"]
    assert [float(parse_quantity(each)) for each in values] == [4, 4, 0.5, 1000, 1.5 * 2**30, 2**41]
    with pytest.raises(ValueError):
        parse_quantity("4 Gi")
