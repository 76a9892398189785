"""The number of pods where the manifest does not say."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.operator.services import service

from octavo_operator.kube import KubeError
from octavo_operator.replicas import seed_replicas, wanted_before


def test_wanted_before() -> None:
    assert wanted_before({"readyOfWanted": "1/3"}) == 3
    assert wanted_before({"readyOfWanted": "0/0"}) == 0
    assert wanted_before({}) is None
    asleep = {"type": "Ready", "status": "False", "reason": "Suspended"}
    assert wanted_before({"readyOfWanted": "0/0", "conditions": [asleep]}) is None


class Scale:
    def __init__(self, code: int = 200) -> None:
        self.code = code
        self.written: list[int] = []

    async def scale(self, _: dict[str, Any], count: int) -> None:
        if self.code != 200:
            raise KubeError(self.code, "", "")
        self.written.append(count)


def seed(scale: Scale, known: int | None, **spec: Any) -> int:
    kube: Any = scale
    return asyncio.run(seed_replicas(kube, {}, service(**spec), known))


@pytest.mark.parametrize(
    ("spec", "known", "count"),
    [
        ({}, None, 1),
        ({}, 3, 3),
        ({}, 0, 0),
        ({"autoscaling": {"minReplicas": 2, "maxReplicas": 4}}, None, 2),
        ({"autoscaling": {"minReplicas": 0, "maxReplicas": 4}}, None, 1),
    ],
)
def test_an_absent_number_is_written(spec: dict[str, Any], known: int | None, count: int) -> None:
    scale = Scale()
    assert seed(scale, known, **spec) == count
    assert scale.written == [count]


@pytest.mark.parametrize("spec", [{"replicas": 2}, {"suspend": True}])
def test_one_that_is_there_or_of_a_suspended_service_is_left(spec: dict[str, Any]) -> None:
    scale = Scale()
    assert seed(scale, 3, **spec) == 3
    assert scale.written == []


def test_another_writer_wins() -> None:
    assert seed(Scale(409), None) == 1
    with pytest.raises(KubeError):
        seed(Scale(403), None)
