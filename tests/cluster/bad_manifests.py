"""Manifests that a person may write, what is wrong with each, and what the API server is to say."""

from __future__ import annotations

from typing import Any

Spec = dict[str, Any]


def _engine(**fields: Any) -> Spec:
    return {"engine": fields}


def _model(uri: str = "hf://a/b", **fields: Any) -> Spec:
    return {"model": {"uri": uri, **fields}}


def _limits(**limits: Any) -> Spec:
    return {"resources": {"limits": limits}}


def _gpus(count: object) -> Spec:
    return {"limits": {"nvidia.com/gpu": count}}


def _selecting(expression: Spec) -> Spec:
    return {"networkPolicy": {"from": [{"podSelector": {"matchExpressions": [expression]}}]}}


def _env(*variables: Spec) -> Spec:
    return _engine(env=list(variables))


def _routing(**fields: Any) -> Spec:
    return {"routing": {"gateways": [{"name": "g"}], **fields}}


def _gateways(*gateways: Spec) -> Spec:
    return {"routing": {"gateways": list(gateways)}}


_AT_N = {"name": "g", "namespace": "n"}


def _picker(**fields: Any) -> Spec:
    return _routing(inferencePool={"endpointPicker": fields})


REFUSED: list[tuple[Spec, str, str]] = [
    # The model.
    ({"model": {}}, "spec.model.uri", "Required"),
    (_model("gs://bucket/model"), "spec.model.uri", "start with hf://"),
    (_model("org/model"), "spec.model.uri", "start with hf://"),
    (_model("hf://"), "spec.model.uri", "hf://ORG/NAME"),
    (_model("hf://a/b/c"), "spec.model.uri", "hf://ORG/NAME"),
    (_model("pvc://"), "spec.model.uri", "pvc://CLAIM"),
    (_model("pvc://Claim/x"), "spec.model.uri", "pvc://CLAIM"),
    (_model("file://models"), "spec.model.uri", "three slashes"),
    (_model("oci://"), "spec.model.uri", "oci://REGISTRY"),
    (_model("file:///m", revision="v1"), "spec.model.revision", "belongs to a Hub model"),
    (_model("hf://a/b@v1", revision="v1"), "spec.model.revision", "given twice"),
    (_model("file:///m", secretRef={"name": "t"}), "spec.model.secretRef", "belongs to a Hub"),
    (_model(names=["a,b"]), "spec.model.names", "should match"),
    (_model("file:///m", endpoint="http://mirror"), "spec.model.endpoint", "belongs to a Hub"),
    (_model(endpoint="mirror.models"), "spec.model.endpoint", "should match"),
    # The engine.
    (_engine(tensorParallelSize="two"), "spec.engine.tensorParallelSize", "integer"),
    (_engine(tensorParallelSize=0), "spec.engine.tensorParallelSize", "greater than or equal"),
    (_engine(gpuMemoryUtilization=1.5), "spec.engine.gpuMemoryUtilization", "0.98"),
    (_engine(gpuMemoryUtilization=0), "spec.engine.gpuMemoryUtilization", "a fraction from"),
    (_engine(dtype="int8"), "spec.engine.dtype", "bfloat16"),
    (_engine(device="tpu"), "spec.engine.device", "cuda"),
    (_engine(blockSize=17), "spec.engine.blockSize", "16"),
    (_engine(maxModelLen=0), "spec.engine.maxModelLen", "at least 16 tokens"),
    (_engine(maxNumSeqs=-1), "spec.engine.maxNumSeqs", "greater than or equal"),
    (_engine(image="a", version="b"), "spec.engine.version", "not both"),
    (_engine(version="not a tag"), "spec.engine.version", "should match"),
    (_engine(extraArgs=["--api-key=x"]), "spec.engine.extraArgs", "apiKeySecretRef"),
    (_engine(extraArgs=["--dtype=float32"]), "spec.engine.extraArgs", "field of its own"),
    (_engine(extraArgs=["--model=/x"]), "spec.engine.extraArgs", "model.uri"),
    (_env({"value": "x"}), "spec.engine.env[0].name", "Required"),
    (_env({"name": "A"}, {"name": "A"}), "spec.engine.env[1]", "Duplicate"),
    (_env({"name": "A", "value": "x", "valueFrom": {}}), "spec.engine.env[0]", "not both"),
    # How many.
    ({"replicas": -1}, "spec.replicas", "greater than or equal"),
    ({"replicas": 2, "autoscaling": {"maxReplicas": 3}}, "spec.replicas", "leave replicas out"),
    ({"autoscaling": {}}, "spec.autoscaling.maxReplicas", "Required"),
    (
        {"autoscaling": {"minReplicas": 3, "maxReplicas": 2}},
        "spec.autoscaling.minReplicas",
        "must not exceed",
    ),
    ({"autoscaling": {"maxReplicas": 0}}, "spec.autoscaling.maxReplicas", "greater than or equal"),
    ({"suspend": "yes"}, "spec.suspend", "boolean"),
    # Who may reach it.
    ({"networkPolicy": {"from": [{}]}}, "spec.networkPolicy.from[0]", "a peer needs podSelector"),
    (
        {"networkPolicy": {"from": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]}},
        "spec.networkPolicy.from[0].ipBlock",
        "write two peers",
    ),
    (
        {"networkPolicy": {"from": [{"ipBlock": {"cidr": "10.0.0.0/64"}}]}},
        "spec.networkPolicy.from[0].ipBlock.cidr",
        "a range of addresses",
    ),
    (
        {"networkPolicy": {"from": [{"ipBlock": {"cidr": "::/0", "except": ["fd00::/999"]}}]}},
        "spec.networkPolicy.from[0].ipBlock.except[0]",
        "a range of addresses",
    ),
    (
        _selecting({"key": "team", "operator": "In"}),
        "spec.networkPolicy.from[0].podSelector.matchExpressions[0].values",
        "In and NotIn need values",
    ),
    (
        _selecting({"key": "team", "operator": "Exists", "values": ["a"]}),
        "spec.networkPolicy.from[0].podSelector.matchExpressions[0].values",
        "In and NotIn need values",
    ),
    # Resources.
    (_limits(cpu=-1), "spec.resources.limits", "not be negative"),
    (_limits(cpu="many"), "spec.resources.limits", "should match"),
    (
        {"resources": {"requests": {"nvidia.com/gpu": 2}}},
        "spec.resources.requests",
        "in limits",
    ),
    ({"resources": _gpus("500m")}, "spec.resources.limits", "GPUs come whole"),
    ({"resources": _gpus(0), **_engine(device="cuda")}, "spec.resources", "is cuda"),
    (
        {"resources": _gpus(1), **_engine(tensorParallelSize=2)},
        "spec.resources",
        "less than engine.tensorParallelSize",
    ),
    # What stands around the pods.
    (
        {"cache": {"persistentVolumeClaim": "weights", "size": "1Gi"}},
        "spec.cache.size",
        "not both",
    ),
    ({"cache": {"persistentVolumeClaim": "No_Dns"}}, "spec.cache.persistentVolumeClaim", "match"),
    ({"cache": {"size": -1}}, "spec.cache.size", "not be negative"),
    ({"drain": {"seconds": 7201}}, "spec.drain.seconds", "7200"),
    ({"service": {"type": "ExternalName"}}, "spec.service.type", "ClusterIP"),
    # How requests come from outside.
    ({"routing": {}}, "spec.routing.gateways", "Required"),
    (_gateways(), "spec.routing.gateways", "at least one Gateway"),
    (_gateways({"name": "g"}, {"name": "g"}), "spec.routing.gateways", "named twice"),
    (
        _gateways(_AT_N, {**_AT_N, "sectionName": "a"}),
        "spec.routing.gateways",
        "different sectionNames",
    ),
    (_gateways({"namespace": "n"}), "spec.routing.gateways[0].name", "Required"),
    (_gateways({"name": "G"}), "spec.routing.gateways[0].name", "should match"),
    (_routing(hostnames=["10.0.0.1"]), "spec.routing.hostnames[0]", "not an address"),
    (_routing(hostnames=["https://a.b"]), "spec.routing.hostnames[0]", "should match"),
    (_routing(paths=["v1"]), "spec.routing.paths[0]", "should match"),
    (_routing(paths=["/v1/.."]), "spec.routing.paths[0]", "must not contain"),
    (_routing(inferencePool={}), "spec.routing.inferencePool.endpointPicker", "Required"),
    (_picker(), "spec.routing.inferencePool.endpointPicker.name", "Required"),
    (_picker(name="p", port=0), "spec.routing.inferencePool.endpointPicker.port", "greater than"),
    (
        _picker(name="p", failureMode="Open"),
        "spec.routing.inferencePool.endpointPicker.failureMode",
        "FailClose",
    ),
    ({"apiKeySecretRef": {}}, "spec.apiKeySecretRef.name", "Required"),
    (
        {"apiKeySecretRef": {"name": "clients"}, **_env({"name": "OCTAVO_API_KEY", "value": "x"})},
        "spec.apiKeySecretRef",
        "given twice",
    ),
]
"""Changes of a good spec, the field's path and words of the sentence; however kubectl validates."""

UNKNOWN: list[tuple[Spec, str]] = [
    (_engine(maxModelLength=8), "spec.engine.maxModelLength"),
    ({"replica": 2}, "spec.replica"),
    (_model(revison="v1"), "spec.model.revison"),
    ({"autoscaling": {"maxReplicas": 2, "targetQueue": 3}}, "spec.autoscaling.targetQueue"),
]
"""Misspelt fields: refused by kubectl's strict validation, its default; else they are dropped."""
