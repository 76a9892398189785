"""How far a download is, from the pods' answers to the condition."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.operator.memory_cluster import MemoryCluster

from octavo_operator.downloads import UNKNOWN, Progress, describe, is_fetching, parse_progress
from octavo_operator.pod_loads import PodLoads

GIB = 1 << 30


def fetching(ip: str = "10.0.0.1") -> dict[str, Any]:
    return {
        "podIP": ip,
        "phase": "Pending",
        "initContainerStatuses": [{"name": "octavo-fetch", "state": {"running": {}}}],
    }


class Pods:
    """What each address answers, and which were asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, int, str]] = []

    async def get(self, ip: str, port: int, path: str) -> Any:
        self.asked.append((ip, port, path))
        return self.answers.get(ip)


def answer(done: int, total: int, rate: int = 0) -> dict[str, int]:
    return {"done": done, "total": total, "bytes_per_second": rate}


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {},
        {"done": 1},
        answer(0, 0),
        answer(5, 4),
        answer(-1, 4),
        answer(1, 1 << 61),
        {**answer(1, 2), "done": "x"},
        {**answer(1, 2), "bytes_per_second": float("inf")},
    ],
)
def test_answers_of_others(wrong: Any) -> None:
    assert parse_progress(wrong) is None


def test_the_furthest_pod_is_told_of() -> None:
    found = [Progress(GIB, 15 * GIB, 10**8), None, Progress(6 * GIB, 15 * GIB, 120_400_000)]
    assert describe(found) == "the model is downloaded: 40% of 15.00 GiB, 120 MB/s"
    assert describe([None]) == describe([]) == ""


def test_which_pods_fetch() -> None:
    assert is_fetching({"status": fetching()})
    done = [{"name": "octavo-fetch", "state": {"terminated": {"exitCode": 0}}}]
    assert not is_fetching({"status": {"initContainerStatuses": done}})
    other = [{"name": "wait", "state": {"running": {}}}]
    assert not is_fetching({"status": {"initContainerStatuses": other}})
    assert not is_fetching({})


def test_the_condition_says_how_far_it_is_and_is_looked_at_again() -> None:
    cluster = MemoryCluster()
    cluster.loads = loads = Pods(**{"10.0.0.1": answer(41, 100, 10**6)})
    cluster.pass_over()
    assert cluster.again is None
    cluster.has_pods(cluster.pod_of(**fetching()))
    told = cluster.pass_over()
    assert told["ModelReady"]["reason"] == told["Ready"]["reason"] == "Downloading"
    assert told["ModelReady"]["message"] == "the model is downloaded: 41% of 100 bytes, 1 MB/s"
    assert loads.asked == [("10.0.0.1", 8000, "/progress")]
    assert cluster.again == 15
    assert not [each for each in cluster.events if "Warning" in each]
    loads.answers.clear()  # a network policy, say
    assert cluster.pass_over()["ModelReady"]["message"] == UNKNOWN
    # Done: the server starts, and nobody is asked any more.
    cluster.has_pods(cluster.pod_of())
    asked = len(loads.asked)
    assert cluster.pass_over()["ModelReady"]["reason"] == "Loading"
    assert len(loads.asked) == asked
    assert cluster.again is None


def test_why_the_download_failed_stays_while_it_is_tried_again() -> None:
    cluster = MemoryCluster()
    cluster.pass_over()
    said = '{"reason": "GatedModel", "message": "it is gated; set HF_TOKEN"}'
    status = fetching()
    status["initContainerStatuses"][0]["lastState"] = {
        "terminated": {"exitCode": 1, "message": said}
    }
    cluster.has_pods(cluster.pod_of(**status))
    assert cluster.pass_over()["Ready"]["reason"] == "GatedModel"


def test_a_download_that_gets_on_again_is_told_instead_of_what_cut_it_off() -> None:
    cluster = MemoryCluster()
    cluster.loads = loads = Pods(**{"10.0.0.1": answer(41, 100, 10**6)})
    cluster.pass_over()
    said = '{"reason": "HubUnreachable", "message": "the Hub cannot be reached"}'
    status = fetching()
    status["initContainerStatuses"][0]["lastState"] = {
        "terminated": {"exitCode": 1, "message": said}
    }
    cluster.has_pods(cluster.pod_of(**status))
    told = cluster.pass_over()
    assert {each["reason"] for each in (told["ModelReady"], told["Ready"])} == {"Downloading"}
    assert told["WorkloadReady"]["reason"] == "Progressing"
    loads.answers.clear()  # it has not begun yet, or is cut off once more
    assert cluster.pass_over()["Ready"]["reason"] == "HubUnreachable"


def test_pods_with_the_settings_of_before_are_not_asked() -> None:
    cluster = MemoryCluster()
    cluster.loads = loads = Pods(**{"10.0.0.1": answer(99, 100), "10.0.0.2": answer(1, 100)})
    cluster.pass_over()
    old = cluster.pod_of(**fetching())
    cluster.edit(model={"uri": "hf://org/other"})
    cluster.has_pods(old)
    cluster.pass_over()
    new = cluster.pod_of(**fetching("10.0.0.2"))
    loads.asked.clear()
    cluster.has_pods(old, new)
    assert cluster.pass_over()["ModelReady"]["message"].startswith("the model is downloaded: 1%")
    assert [ip for ip, *_ in loads.asked] == ["10.0.0.2"]


def test_a_service_of_many_pods_asks_a_few() -> None:
    pods = Pods()
    loads = PodLoads(pods, pods)  # type: ignore[arg-type]
    many = [{"status": fetching(f"10.0.0.{index}")} for index in range(50)]
    assert asyncio.run(loads.describe_downloads(many)) == ""
    assert len(pods.asked) == 8
