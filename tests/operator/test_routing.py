"""What spec.routing may say, without an API server; tests/cluster has the same rules as CEL."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.services import service

from octavo_operator.routing import EndpointPicker, GatewayRef
from octavo_operator.spec import InvalidSpec


def of(**routing: Any) -> Any:
    return service(routing={"gateways": [{"name": "g"}], **routing}).spec.routing


def test_the_least() -> None:
    found = of()
    assert found.gateways == (GatewayRef(name="g"),)
    assert (found.hostnames, found.paths, found.inference_pool) == ((), (), None)


def test_everything() -> None:
    picker = {"name": "p", "port": 1, "failureMode": "FailOpen"}
    found = of(
        gateways=[{"name": "g", "namespace": "n", "sectionName": "s"}],
        hostnames=["*.example.com"],
        paths=["/"],
        inferencePool={"endpointPicker": picker},
    )
    assert found.gateways == (GatewayRef(name="g", namespace="n", section_name="s"),)
    assert (found.hostnames, found.paths) == (("*.example.com",), ("/",))
    assert found.inference_pool.endpoint_picker == EndpointPicker(
        name="p", port=1, failure_mode="FailOpen"
    )


def test_a_pickers_defaults() -> None:
    found = of(inferencePool={"endpointPicker": {"name": "p", "port": None}})
    assert found.inference_pool.endpoint_picker == EndpointPicker(name="p", port=9002)


@pytest.mark.parametrize(
    ("routing", "path"),
    [
        ({"gateways": []}, "spec.routing.gateways"),
        ({"gateways": [{"name": "g"}, {"name": "g"}]}, "spec.routing.gateways"),
        ({"gateways": [{"name": "g"}, {"name": "g", "sectionName": "a"}]}, "spec.routing.gateways"),
        ({"hostnames": ["a.b", "10.0.0.1"]}, "spec.routing.hostnames[1]"),
        ({"hostnames": ["a.b:80"]}, "spec.routing.hostnames[0]"),
        ({"paths": ["v1"]}, "spec.routing.paths[0]"),
        ({"paths": ["/v1", "/a/.."]}, "spec.routing.paths[1]"),
        ({"paths": ["/a//b"]}, "spec.routing.paths[0]"),
        ({"inferencePool": {}}, "spec.routing.inferencePool.endpointPicker"),
    ],
    ids=str,
)
def test_mistakes(routing: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidSpec) as refusal:
        of(**routing)
    assert refusal.value.path == path


def test_two_listeners_of_one_gateway_and_two_gateways_of_one_name() -> None:
    sections = [{"name": "g", "sectionName": "a"}, {"name": "g", "sectionName": "b"}]
    assert len(of(gateways=[*sections, {"name": "g", "namespace": "n"}]).gateways) == 3
