"""The CRD itself. What the API server says of it is tests/cluster's; what people read is here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from tests.operator.services import NOW, facts, pod, service

from octavo_operator import autoscaling, names, routing, schema, spec
from octavo_operator.pod_load import PodLoad, report
from octavo_operator.status import decide_status

VERSION = schema.load_crd()["spec"]["versions"][0]
ROOT = schema.object_schema()


def walk(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for key, each in node.get("properties", {}).items():
        yield from walk(each, f"{path}.{key}")
    if "items" in node:
        yield from walk(node["items"], f"{path}[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from walk(node["additionalProperties"], f"{path}{{}}")


FIELDS = [(path, node) for path, node in walk(ROOT) if not path.startswith(".metadata")]


def test_names() -> None:
    crd = schema.load_crd()["spec"]
    assert (crd["group"], VERSION["name"]) == (names.GROUP, names.VERSION)
    assert (crd["names"]["kind"], crd["names"]["plural"]) == (names.KIND, names.PLURAL)
    assert crd["names"]["shortNames"] == ["ois"]
    assert crd["names"]["categories"] == ["octavo"]


def test_subresources() -> None:
    assert VERSION["subresources"] == {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    }
    assert "default" not in ROOT["properties"]["spec"]["properties"]["replicas"]


def test_columns() -> None:
    columns = {
        each["name"]: each.get("priority", 0) for each in VERSION["additionalPrinterColumns"]
    }
    assert columns == {
        "Model": 0, "Ready": 0, "Reason": 0, "Replicas": 0, "Queue": 0, "TP": 1, "URL": 1, "Age": 0,
    }  # fmt: skip


@pytest.mark.parametrize(("path", "node"), FIELDS, ids=[path or "root" for path, _ in FIELDS])
def test_every_field_is_described_and_bounded(path: str, node: dict[str, Any]) -> None:
    """Bounds keep CEL's cost estimate, and an attacker's object, small."""
    assert node["description"].strip() and "TODO" not in node["description"]
    if node.get("x-kubernetes-int-or-string"):
        assert "maxLength" in node and "pattern" in node
        return
    kind = node["type"]
    if path.startswith(".spec"):
        if kind == "string":
            assert "maxLength" in node or "enum" in node
        elif kind == "integer":
            assert "enum" in node or ("minimum" in node and "maximum" in node)
        elif kind == "number":
            assert node["x-kubernetes-validations"]
        elif "additionalProperties" in node:
            assert "maxProperties" in node
    if kind == "array":
        assert "maxItems" in node and "x-kubernetes-list-type" in node


RULES = [
    (path, node, rule)
    for path, node in walk(ROOT)
    for rule in node.get("x-kubernetes-validations", ())
]


@pytest.mark.parametrize(
    ("path", "node", "rule"), RULES, ids=[f"{p}-{r['message'][:20]}" for p, _, r in RULES]
)
def test_every_rule_says_where_and_what(
    path: str, node: dict[str, Any], rule: dict[str, Any]
) -> None:
    """A rule of an object is reported at the object unless it says where; one of a value is not."""
    assert len(rule["message"].split()) >= 4
    if node.get("type") == "object" and "properties" in node:
        assert rule["fieldPath"].lstrip(".").split(".")[0] in node["properties"]


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (spec.Spec, ()),
        (spec.Model, ("model",)),
        (spec.SecretRef, ("model", "secretRef")),
        (spec.Engine, ("engine",)),
        (autoscaling.Autoscaling, ("autoscaling",)),
        (spec.Resources, ("resources",)),
        (spec.Cache, ("cache",)),
        (spec.Drain, ("drain",)),
        (spec.Exposure, ("service",)),
        (spec.NetworkPolicy, ("networkPolicy",)),
        (spec.ApiKeyRef, ("apiKeySecretRef",)),
        (routing.Routing, ("routing",)),
        (routing.InferencePool, ("routing", "inferencePool")),
        (routing.EndpointPicker, ("routing", "inferencePool", "endpointPicker")),
    ],
)
def test_dataclasses_and_schema_agree(kind: type, path: tuple[str, ...]) -> None:
    node = ROOT["properties"]["spec"]
    for part in path:
        node = node["properties"][part]
    fields = {spec.camel_case(each.name): each for each in dataclasses.fields(kind)}
    assert set(fields) == set(node["properties"])
    required = {
        name
        for name, each in fields.items()
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
    }
    assert required == set(node.get("required", ()))
    for name, property_schema in node["properties"].items():
        if "default" in property_schema and property_schema["default"] != {}:
            assert fields[name].default == property_schema["default"], name


def test_a_gateways_fields_agree() -> None:
    node = ROOT["properties"]["spec"]["properties"]["routing"]["properties"]["gateways"]["items"]
    fields = [spec.camel_case(each.name) for each in dataclasses.fields(routing.GatewayRef)]
    assert set(fields) == set(node["properties"])


def test_status_is_in_the_schema() -> None:
    """The API server drops unknown status fields without a word."""
    one = service(autoscaling={"maxReplicas": 2})
    load = PodLoad(
        in_flight=1,
        running=1,
        waiting=12345,
        kv_cache_usage=0.5,
        kv_cache_tokens=10**6,
        startup_seconds=9,
        version="1",
    )
    before = {"reported": report([load])}
    seen = facts(pod(ready=True), plan="beside", waiting="an image")
    status = decide_status(one, seen, before, NOW)
    declared = ROOT["properties"]["status"]
    assert not list(schema.check(declared, status, "status"))
    assert set(status) == set(declared["properties"])
