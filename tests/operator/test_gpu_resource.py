"""An installation whose nodes call a GPU something else."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.operator.memory_cluster import MemoryCluster
from tests.operator.services import manifest, service
from tests.server.models.published_configs import LLAMA

from octavo_operator import names
from octavo_operator.accelerators import Accelerators
from octavo_operator.fit import decide_fit
from octavo_operator.installation import Installation
from octavo_operator.render import render
from octavo_operator.spec import InvalidSpec, parse
from octavo_server.model_config import parse_config

AMD, SLICE = "amd.com/gpu", "nvidia.com/mig-3g.40gb"


def pod(gpu_resource: str, **spec: Any) -> dict[str, Any]:
    one = parse(manifest(**spec), gpu_resource=gpu_resource)
    found: dict[str, Any] = render(one)[0]["spec"]["template"]["spec"]
    return found


def limits(pod_spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = pod_spec["containers"][0].get("resources", {}).get("limits", {})
    return found


def tolerated(pod_spec: dict[str, Any]) -> list[str]:
    return [each["key"] for each in pod_spec.get("tolerations", ())]


def test_pods_ask_for_it_and_tolerate_it() -> None:
    found = pod(AMD, engine={"tensorParallelSize": 2})
    assert limits(found) == {AMD: 2}
    assert tolerated(found) == [AMD]


def test_nodes_with_slices_have_the_taint_of_the_whole() -> None:
    found = pod(SLICE)
    assert limits(found) == {SLICE: 1}
    assert tolerated(found) == [SLICE, names.GPU_RESOURCE]


@pytest.mark.parametrize("zero", [AMD, names.GPU_RESOURCE])
def test_a_count_of_none_runs_on_cpus(zero: str) -> None:
    found = pod(AMD, resources={"limits": {zero: 0, "memory": "1Gi"}, "requests": {zero: 0}})
    assert limits(found) == {"memory": "1Gi"}
    assert "requests" not in found["containers"][0]["resources"]
    assert tolerated(found) == []
    assert "--device=cpu" in found["containers"][0]["args"]


def test_a_gpu_that_the_manifest_names_wins() -> None:
    assert limits(pod(AMD, resources={"limits": {SLICE: 1}})) == {SLICE: 1}


@pytest.mark.parametrize(
    ("count", "device", "problem"),
    [(1, "auto", "amd.com/gpu is 1, but"), (0, "cuda", "but amd.com/gpu is 0")],
)
def test_too_few_of_them(count: int, device: str, problem: str) -> None:
    asked = manifest(
        engine={"tensorParallelSize": 2, "device": device}, resources={"limits": {AMD: count}}
    )
    parse(asked)
    with pytest.raises(InvalidSpec, match=problem):
        parse(asked, gpu_resource=AMD)


class Nodes:
    def __init__(self) -> None:
        self.asked: list[str] = []

    async def list(self, _version: str, _kind: str, _namespace: None, selector: str) -> list[Any]:
        self.asked.append(selector)
        labels = {"nvidia.com/gpu.memory": "81559", f"{SLICE}.memory": "40192"}
        return [{"metadata": {"labels": labels}}]


def test_the_memory_is_the_slices() -> None:
    nodes: Any = Nodes()
    assert asyncio.run(Accelerators(nodes, gpu_resource=SLICE).mebibytes({})) == (40192,)
    assert nodes.asked == [f"{SLICE}.memory"]


def test_the_label_that_is_missing_is_named() -> None:
    said = decide_fit(replace(service(), gpu_resource=AMD), parse_config(LLAMA), ())
    assert said.reason == "NoGpuMemoryLabels" and "the label amd.com/gpu.memory " in said.message


def test_a_change_of_it_rolls_nothing() -> None:
    cluster = MemoryCluster()
    cluster.pass_over()
    before = cluster.deployment["spec"]
    cluster.installation = Installation(gpu_resource=AMD)
    cluster.pass_over()
    assert cluster.deployment["spec"] == before
    cluster.edit(engine={"maxModelLen": 1024})
    cluster.pass_over()
    assert cluster.container["resources"]["limits"] == {AMD: 1}
