"""The GPU memory of nodes, by their labels."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo_operator.accelerators import KEPT_SECONDS, MEMORY_LABEL, Accelerators, found_in
from octavo_operator.kube import KubeError


class Nodes:
    def __init__(self, *labels: dict[str, str], code: int = 200) -> None:
        self.labels, self.code, self.asked = labels, code, 0

    async def list(self, *_: Any) -> list[dict[str, Any]]:
        self.asked += 1
        if self.code != 200:
            raise KubeError(self.code, "Forbidden", "nodes is forbidden")
        return [{"metadata": {"labels": labels}} for labels in self.labels]


def ask(nodes: Nodes, pod_spec: dict[str, Any], times: tuple[float, ...] = (0.0,)) -> Any:
    now = iter([each for each in times for _ in range(2)])
    kube: Any = nodes

    async def scenario() -> Any:
        clock = list(now)
        accelerators = Accelerators(kube, lambda: clock[0] + 1000)
        for each in times:
            clock[0] = each
            found = await accelerators.mebibytes(pod_spec)
        return found

    return asyncio.run(scenario())


A, B = {MEMORY_LABEL: "15360", "zone": "a"}, {MEMORY_LABEL: "81559", "zone": "b"}


@pytest.mark.parametrize(
    ("selector", "found"), [({}, (15360, 81559)), ({"zone": "a"}, (15360,)), ({"zone": "c"}, ())]
)
def test_only_nodes_that_the_pods_may_come_to(
    selector: dict[str, str], found: tuple[int, ...]
) -> None:
    assert ask(Nodes(A, B), {"nodeSelector": selector}) == found


def test_listed_once_a_minute() -> None:
    nodes = Nodes(A)
    ask(nodes, {}, (0.0, KEPT_SECONDS - 1, KEPT_SECONDS + 1, KEPT_SECONDS + 2))
    assert nodes.asked == 2


def test_not_allowed_is_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    assert ask(Nodes(A, code=403), {}, (0.0, 100.0, 200.0)) == ()
    assert sum("forbidden" in each.message for each in caplog.records) == 1
    assert ask(Nodes(A, code=500), {}) == ()


def test_labels_that_are_no_numbers() -> None:
    assert found_in([{MEMORY_LABEL: "lots"}, {MEMORY_LABEL: "0"}, {}, {MEMORY_LABEL: "9"}]) == (9,)


def test_passes_that_ask_at_once_get_the_same_answer() -> None:
    class Slow(Nodes):
        async def list(self, *arguments: Any) -> list[dict[str, Any]]:
            await asyncio.sleep(0.01)
            return await super().list(*arguments)

    nodes = Slow(A)
    kube: Any = nodes

    async def scenario() -> list[tuple[int, ...]]:
        accelerators = Accelerators(kube)
        return await asyncio.gather(*(accelerators.mebibytes({}) for _ in range(3)))

    assert asyncio.run(scenario()) == [(15360,)] * 3
    assert nodes.asked == 1


@pytest.mark.parametrize("selector", [["zone"], "zone", 1])
def test_a_selector_of_a_wrong_type_is_the_api_servers_to_refuse(selector: Any) -> None:
    assert ask(Nodes(A, B), {"nodeSelector": selector}) == ()
