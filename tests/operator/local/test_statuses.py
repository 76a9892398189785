"""Tables: what the runner knows against what a kubelet would write."""

from typing import Any

import pytest

from octavo_operator.local.statuses import (
    ContainerState,
    Ended,
    PodState,
    container_status,
    decide_phase,
    pod_status,
)

NOW = 1_700_000_000.0  # 2023-11-14T22:13:20Z


def ended(code: int) -> Ended:
    return Ended(exit_code=code, started_at=NOW, finished_at=NOW + 1)


def state(kind: str) -> ContainerState:
    """waiting | running | ready | done N | crashed N (waits for a restart after exit code N)."""
    word, _, code = kind.partition(" ")
    result = ContainerState(name=word, image="i")
    if word in ("running", "ready"):
        result.started_at, result.started, result.ready = NOW, True, word == "ready"
    elif word == "done":
        result.started_at, result.ended = NOW, ended(int(code))
    elif word == "crashed":
        result.last, result.waiting_reason = ended(int(code)), "CrashLoopBackOff"
    return result


def pod(
    containers: list[str], init: list[str] | None = None, policy: str = "Always", **fields: Any
) -> PodState:
    return PodState(
        pod={"metadata": {"name": "p"}, "spec": {"restartPolicy": policy}},
        start_time=NOW,
        containers=[state(kind) for kind in containers],
        init=[state(kind) for kind in init or []],
        **fields,
    )


@pytest.mark.parametrize(
    ("containers", "init", "policy", "phase"),
    [
        (["waiting"], [], "Always", "Pending"),
        (["running"], [], "Always", "Running"),
        (["ready", "waiting"], [], "Always", "Pending"),
        (["ready", "crashed 1"], [], "Always", "Running"),
        (["crashed 1"], [], "Always", "Running"),
        (["done 0"], [], "Always", "Running"),
        (["done 0"], [], "OnFailure", "Succeeded"),
        (["done 0", "done 0"], [], "Never", "Succeeded"),
        (["done 0", "done 3"], [], "Never", "Failed"),
        (["done 0", "crashed 3"], [], "OnFailure", "Running"),
        (["done 0", "running"], [], "Never", "Running"),
        (["waiting"], ["waiting"], "Always", "Pending"),
        (["waiting"], ["running"], "Always", "Pending"),
        (["waiting"], ["done 0", "running"], "Always", "Pending"),
        (["waiting"], ["crashed 1"], "Always", "Pending"),
        (["waiting"], ["done 1"], "Never", "Failed"),
        (["running"], ["done 0"], "Never", "Running"),
    ],
)
def test_phase(containers: list[str], init: list[str], policy: str, phase: str) -> None:
    assert decide_phase(pod(containers, init, policy)) == phase


@pytest.mark.parametrize(
    ("containers", "phase"),
    [
        (["running"], "Running"),
        (["done 0"], "Succeeded"),
        (["done 143"], "Failed"),
        (["done 0", "running"], "Running"),
    ],
)
def test_phase_of_a_stopped_pod(containers: list[str], phase: str) -> None:
    assert decide_phase(pod(containers, closing=True)) == phase


def conditions(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c.get("reason", "")) for c in status["conditions"]}


@pytest.mark.parametrize(
    ("given", "initialized", "ready"),
    [
        (pod(["ready"]), ("True", ""), ("True", "")),
        (pod(["running"]), ("True", ""), ("False", "ContainersNotReady")),
        (
            pod(["waiting"], ["running"]),
            ("False", "ContainersNotInitialized"),
            ("False", "ContainersNotReady"),
        ),
        (pod(["done 0"], policy="Never"), ("True", "PodCompleted"), ("False", "PodCompleted")),
        (pod(["done 1"], policy="Never"), ("True", ""), ("False", "PodFailed")),
    ],
)
def test_conditions(given: PodState, initialized: tuple, ready: tuple) -> None:
    found = conditions(pod_status(given, {}, NOW))
    assert found["Initialized"] == initialized
    assert found["Ready"] == found["ContainersReady"] == ready


def test_unready_containers_are_named() -> None:
    status = pod_status(pod(["running", "ready", "waiting"]), {}, NOW)
    message = next(c["message"] for c in status["conditions"] if c["type"] == "Ready")
    assert message == "containers with unready status: [running waiting]"


def test_transition_times_change_with_the_status_only() -> None:
    given = pod(["running"], pod_ip="10.0.0.7")
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "T"}
    first = pod_status(given, {"conditions": [scheduled], "qosClass": "Burstable"}, NOW)
    second = pod_status(given, first, NOW + 60)
    assert second == first
    assert scheduled in second["conditions"]
    assert second["qosClass"] == "Burstable"
    assert second["podIPs"] == [{"ip": "10.0.0.7"}]
    given.containers[0].ready = True
    third = pod_status(given, second, NOW + 60)
    times = {c["type"]: c["lastTransitionTime"] for c in third["conditions"]}
    assert times["Ready"] == "2023-11-14T22:14:20Z"
    assert times["Initialized"] == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize(
    ("given", "now", "last"),
    [
        (state("waiting"), {"waiting": {"reason": "ContainerCreating"}}, {}),
        (state("running"), {"running": {"startedAt": "2023-11-14T22:13:20Z"}}, {}),
        (
            state("done 0"),
            {
                "terminated": {
                    "exitCode": 0,
                    "reason": "Completed",
                    "startedAt": "2023-11-14T22:13:20Z",
                    "finishedAt": "2023-11-14T22:13:21Z",
                }
            },
            {},
        ),
        (
            state("crashed 137"),
            {"waiting": {"reason": "CrashLoopBackOff"}},
            {
                "terminated": {
                    "exitCode": 137,
                    "reason": "Error",
                    "startedAt": "2023-11-14T22:13:20Z",
                    "finishedAt": "2023-11-14T22:13:21Z",
                }
            },
        ),
    ],
)
def test_container_states(given: ContainerState, now: dict, last: dict) -> None:
    status = container_status(given)
    assert (status["state"], status["lastState"]) == (now, last)


def test_an_init_container_is_ready_when_it_completed() -> None:
    assert container_status(state("done 0"), init=True)["ready"] is True
    assert container_status(state("done 1"), init=True)["ready"] is False
    assert container_status(state("running"), init=True)["ready"] is False


def test_a_refused_pod_failed() -> None:
    status = pod_status(pod(["waiting"], failure=("UnsupportedField", "no")), {}, NOW)
    assert (status["phase"], status["reason"], status["message"]) == (
        "Failed",
        "UnsupportedField",
        "no",
    )
