"""Loads are read beside the passes, and the status written only where it differs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.operator.services import manifest
from tests.operator.test_pod_load import ANSWER

from octavo_operator import pod_loads as module
from octavo_operator.deletion_cost import COST_ANNOTATION, decide_costs, shrinks, write_costs
from octavo_operator.kube import KubeError
from octavo_operator.pod_load import PodLoad
from octavo_operator.pod_loads import PodLoads


def pod(name: str, ip: str = "", ready: bool = True, **metadata: Any) -> dict[str, Any]:
    condition = {"type": "Ready", "status": str(ready)}
    return {
        "metadata": {"name": name, "namespace": "ns", "uid": name, **metadata},
        "status": {"podIP": ip or f"ip-{name}", "conditions": [condition]},
    }


class Cluster:
    """Pods that answer by their IP, and what is written."""

    def __init__(self, **answers: dict[str, Any] | None) -> None:
        self.answers = {f"ip-{name}": answer for name, answer in answers.items()}
        self.asked: list[str] = []
        self.statuses: list[dict[str, Any]] = []
        self.costs: dict[str, str] = {}
        self.code = 200

    async def get(self, ip: str, port: int, path: str) -> dict[str, Any] | None:
        assert (port, path) == (8000, "/load")
        self.asked.append(ip)
        return self.answers.get(ip)

    async def patch_status(self, live: dict[str, Any], change: dict[str, Any]) -> None:
        if self.code != 200:
            raise KubeError(self.code, "", "")
        assert live["metadata"]["uid"] == "u1"
        self.statuses.append(change)

    async def annotate_pod(self, pod: dict[str, Any], annotations: dict[str, str]) -> None:
        if self.code != 200:
            raise KubeError(self.code, "", "")
        self.costs[pod["metadata"]["name"]] = annotations[COST_ANNOTATION]

    def loads(self) -> PodLoads:
        either: Any = self
        return PodLoads(either, either)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `loads` for so many rounds."""

    async def run(loads: PodLoads, count: int) -> None:
        left = count

        async def sleep(seconds: float) -> None:
            nonlocal left
            assert seconds == module.EVERY_SECONDS
            left -= 1
            if left < 0:
                raise asyncio.CancelledError

        monkeypatch.setattr(module.asyncio, "sleep", sleep)
        with pytest.raises(asyncio.CancelledError):
            await loads.run()

    return lambda loads, count: asyncio.run(run(loads, count))


def test_written_once_while_nothing_changes(rounds: Any) -> None:
    cluster = Cluster(a=ANSWER, b=ANSWER)
    loads = cluster.loads()
    loads.watch(manifest(), [pod("a"), pod("b")])
    rounds(loads, 3)
    assert cluster.asked == ["ip-a", "ip-b"] * 3
    assert [each["reported"]["running"] for each in cluster.statuses] == [4]
    cluster.answers["ip-a"] = {**ANSWER, "running": 5}
    rounds(loads, 2)
    assert [each["reported"]["running"] for each in cluster.statuses] == [4, 7]


def test_what_the_status_has_is_not_written_again(rounds: Any) -> None:
    cluster = Cluster(a=ANSWER)
    loads = cluster.loads()
    loads.watch(manifest(), [pod("a")])
    rounds(loads, 1)
    again = cluster.loads()  # another operator
    again.watch({**manifest(), "status": cluster.statuses[0]}, [pod("a")])
    rounds(again, 1)
    assert len(cluster.statuses) == 1


def test_only_ready_pods_are_asked(rounds: Any) -> None:
    cluster = Cluster(a=ANSWER, b=ANSWER, c=ANSWER)
    loads = cluster.loads()
    going = pod("b", deletionTimestamp="2026-01-01T00:00:00Z")
    loads.watch(manifest(), [pod("a", ready=False), going])
    rounds(loads, 1)
    assert cluster.asked == [] and cluster.statuses == []


def test_silence_is_no_news(rounds: Any) -> None:
    cluster = Cluster()
    loads = cluster.loads()
    loads.watch(manifest(), [pod("a")])
    rounds(loads, 1)
    assert cluster.asked == ["ip-a"] and cluster.statuses == []


def test_a_service_that_is_gone_is_forgotten(rounds: Any) -> None:
    cluster = Cluster(a=ANSWER)
    cluster.code = 404
    loads = cluster.loads()
    loads.watch(manifest(), [pod("a")])
    rounds(loads, 3)
    assert cluster.asked == ["ip-a"]


def test_an_api_server_that_fails_is_asked_again(rounds: Any) -> None:
    cluster = Cluster(a=ANSWER)
    cluster.code = 500
    loads = cluster.loads()
    loads.watch(manifest(), [pod("a")])
    rounds(loads, 1)
    cluster.code = 200
    rounds(loads, 1)
    assert len(cluster.statuses) == 1


def costs(cluster: Cluster, *pods: dict[str, Any]) -> dict[str, str]:
    kube: Any = cluster
    asyncio.run(write_costs(kube, cluster.loads(), list(pods)))
    return cluster.costs


def test_the_idlest_pod_costs_least() -> None:
    cluster = Cluster(a={**ANSWER, "server_load": 7}, b={**ANSWER, "server_load": 2}, c=None)
    assert costs(cluster, pod("a"), pod("b"), pod("c"), pod("d", ready=False)) == {
        "a": "7",
        "b": "2",
        "c": "8",  # it may be busy
    }


def test_costs_of_before_are_replaced_and_equal_ones_kept() -> None:
    cluster = Cluster(a={**ANSWER, "server_load": 0}, b={**ANSWER, "server_load": 2})
    old = pod("a", annotations={COST_ANNOTATION: "9"})
    same = pod("b", annotations={COST_ANNOTATION: "2"})
    assert costs(cluster, old, same) == {"a": "0"}


def test_where_nobody_answers_or_it_may_not_be_written() -> None:
    assert costs(Cluster(), pod("a")) == {}
    cluster = Cluster(a=ANSWER)
    cluster.code = 404
    assert costs(cluster, pod("a")) == {}


@pytest.mark.parametrize(
    ("live", "wanted", "found"), [(3, 2, True), (2, 2, False), (2, 3, False), (2, 0, False)]
)
def test_what_shrinks(live: int, wanted: int, found: bool) -> None:
    assert shrinks({"spec": {"replicas": live}}, {"spec": {"replicas": wanted}}) is found
    assert shrinks(None, {"spec": {"replicas": wanted}}) is False


def test_nobody_known() -> None:
    assert decide_costs(["a", "b"], {}) == {"a": 1, "b": 1}
    busy = PodLoad(
        in_flight=3,
        running=0,
        waiting=0,
        kv_cache_usage=0,
        kv_cache_tokens=0,
        startup_seconds=0,
        version="",
    )
    assert decide_costs(["a", "b"], {"b": busy}) == {"a": 4, "b": 3}


def test_one_that_is_forgotten_in_a_round_does_not_end_the_rounds(rounds: Any) -> None:
    cluster = Cluster(a=ANSWER)
    loads = cluster.loads()
    loads.watch(manifest(), [pod("a")])
    other = manifest(name="other")
    loads.watch(other, [pod("a")])
    ask = cluster.get

    async def get(ip: str, port: int, path: str) -> dict[str, Any] | None:
        loads.forget(("ns", "tiny"))
        loads.forget(("ns", "other"))
        return await ask(ip, port, path)

    cluster.get = get  # type: ignore[method-assign]
    rounds(loads, 2)
    asyncio.run(loads._look(("ns", "gone")))
    assert cluster.statuses == []


def test_a_defect_with_one_service_is_not_the_others(rounds: Any) -> None:
    cluster = Cluster(a=ANSWER)
    loads = cluster.loads()
    loads.watch(manifest(name="broken"), [pod("a")])
    loads._services[("ns", "broken")] = {}  # type: ignore[assignment]
    loads.watch(manifest(), [pod("a")])
    rounds(loads, 2)
    assert cluster.statuses
