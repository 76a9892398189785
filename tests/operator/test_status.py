"""What is reported for which facts."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.services import EARLIER, NOW, facts, pod, service

from octavo_operator.conditions import MODEL_READY, WORKLOAD_READY, Condition, Problem
from octavo_operator.facts import Facts
from octavo_operator.status import decide_invalid, decide_status
from octavo_operator.transitions import decide_events

MISSING = Problem(MODEL_READY, "ModelNotFound", "no such repository")
NO_NODE = Problem(WORKLOAD_READY, "Unschedulable", "0/3 nodes are available")
TAKEN = Problem(WORKLOAD_READY, "NameConflict", "taken")
READY = pod(ready=True)

TABLE = {
    # facts: (Ready, ModelReady, WorkloadReady), each status/reason
    "nothing yet": (
        Facts(wanted=1),
        ("False/Progressing", "Unknown/NoPod", "False/Progressing"),
    ),
    "loading": (facts(pod()), ("False/Loading", "False/Loading", "False/Progressing")),
    "ready": (facts(READY), ("True/Serving", "True/Loaded", "True/AllReplicasReady")),
    "model not found": (
        facts(pod(problem=MISSING)),
        ("False/ModelNotFound", "False/ModelNotFound", "False/ModelNotFound"),
    ),
    "unschedulable": (
        facts(pod(problem=NO_NODE)),
        ("False/Unschedulable", "Unknown/NoPod", "False/Unschedulable"),
    ),
    "waits for the GPUs of its predecessor": (
        facts(pod(problem=NO_NODE), ending=1),
        ("False/RollingOut", "Unknown/NoPod", "False/RollingOut"),
    ),
    "scaled up, the second pod has no place": (
        facts(READY, pod(problem=NO_NODE), wanted=2),
        ("True/Serving", "True/Loaded", "True/SomeReplicasReady"),
    ),
    "rolling, the old one serves": (
        facts(pod(), pod("old", ready=True)),
        ("False/Loading", "False/Loading", "False/RollingOut"),
    ),
    "rolling, half done": (
        facts(READY, pod("old", ready=True), wanted=2),
        ("False/RollingOut", "True/Loaded", "False/RollingOut"),
    ),
    "rolling into a wrong model, the old one serves": (
        facts(pod(problem=MISSING), pod("old", ready=True)),
        ("False/ModelNotFound", "False/ModelNotFound", "False/ModelNotFound"),
    ),
    "asleep": (
        facts(wanted=0),
        ("True/ScaledToZero", "True/ScaledToZero", "True/ScaledToZero"),
    ),
    "name taken": (
        Facts(wanted=1, problem=TAKEN),
        ("False/NameConflict", "Unknown/NoPod", "False/NameConflict"),
    ),
    "refused change, the old one serves": (
        facts(READY, problem=Problem(WORKLOAD_READY, "InvalidPodTemplate", "no field x")),
        ("False/InvalidPodTemplate", "True/Loaded", "False/InvalidPodTemplate"),
    ),
}


def conditions(status: dict[str, Any]) -> dict[str, str]:
    return {each["type"]: f"{each['status']}/{each['reason']}" for each in status["conditions"]}


@pytest.mark.parametrize("case", TABLE)
def test_conditions(case: str) -> None:
    seen, (ready, model, workload) = TABLE[case]
    status = decide_status(service(), seen, {}, NOW)
    assert conditions(status) == {"Ready": ready, "ModelReady": model, "WorkloadReady": workload}
    assert all(each["observedGeneration"] == 3 for each in status["conditions"])
    assert all(each["message"] for each in status["conditions"])


def test_suspended_is_not_asleep() -> None:
    status = decide_status(service(suspend=True), facts(wanted=0), {}, NOW)
    assert set(conditions(status).values()) == {"False/Suspended"}
    # Nothing to be warned of.
    assert [event.type for event in decide_events({}, status)] == ["Normal"]


def test_everything_is_there_from_the_first_pass() -> None:
    status = decide_status(service(), Facts(wanted=1), {}, NOW)
    assert status["url"] == "http://tiny.ns.svc/v1"
    assert status["selector"] == "octavo.dev/service=tiny"
    assert (status["replicas"], status["readyReplicas"], status["readyOfWanted"]) == (0, 0, "0/1")
    assert status["observedGeneration"] == 3


def test_autoscaling_is_what_was_found_of_it() -> None:
    found = Condition("AutoscalingReady", "False", "NoMetrics", "why")
    scaled = service(autoscaling={"maxReplicas": 4})
    status = decide_status(scaled, facts(READY, autoscaling=found), {}, NOW)
    assert conditions(status)["AutoscalingReady"] == "False/NoMetrics"
    assert conditions(status)["Ready"] == "True/Serving"


def test_transition_times() -> None:
    first = decide_status(service(), facts(pod()), {}, EARLIER)
    second = decide_status(service(), facts(pod(problem=MISSING)), first, NOW)
    third = decide_status(service(), facts(READY), second, NOW)
    times = [
        [each["lastTransitionTime"] for each in status["conditions"]] for status in (second, third)
    ]
    assert times == [[EARLIER] * 3, [NOW] * 3]  # False stays False, whatever the reason


def test_rollout() -> None:
    rolling = decide_status(service(), facts(pod(), pod("old", ready=True)), {}, NOW)["rollout"]
    assert rolling == {"revision": "new", "reason": "why", "updatedReplicas": 1, "complete": False}
    assert decide_status(service(), facts(READY), {}, NOW)["rollout"]["complete"] is True


def test_an_unreadable_object_keeps_its_figures() -> None:
    before = decide_status(service(), facts(READY), {}, EARLIER)
    status = decide_invalid(4, "spec.model: is required", before, NOW)
    assert conditions(status)["Ready"] == "False/InvalidSpec"
    assert (status["readyReplicas"], status["observedGeneration"]) == (1, 4)


def events(before: Facts | None, after: Facts) -> list[tuple[str, str]]:
    previous = {} if before is None else decide_status(service(), before, {}, EARLIER)
    status = decide_status(service(), after, previous, NOW)
    return [(each.type, each.reason) for each in decide_events(previous, status)]


def test_events() -> None:
    assert events(None, Facts(wanted=1)) == [("Normal", "Progressing")]
    assert events(facts(pod()), facts(pod())) == []
    assert events(facts(pod()), facts(READY)) == [("Normal", "Serving")]
    assert events(facts(pod()), facts(pod(problem=MISSING))) == [("Warning", "ModelNotFound")]
    assert events(facts(READY), facts(wanted=0)) == [("Normal", "ScaledToZero")]
    half = facts(READY, pod("old", ready=True), wanted=2)
    assert events(facts(pod(), pod("old", ready=True), wanted=2), half) == []
    newer = facts(pod("newer"), READY, revision="newer")
    assert events(facts(READY), newer) == [("Normal", "RollingOut"), ("Normal", "Loading")]


def test_the_rollout_event_says_why() -> None:
    previous = decide_status(service(), facts(READY), {}, EARLIER)
    newer = facts(READY, revision="newer", cause="spec.engine.maxModelLen: 2048 -> 1024")
    event = decide_events(previous, decide_status(service(), newer, previous, NOW))[0]
    assert event.message == "pods are replaced: spec.engine.maxModelLen: 2048 -> 1024"


STUCK = Problem(WORKLOAD_READY, "Stalled", "the rollout stands still")
NO_GPU = Problem(WORKLOAD_READY, "UnexpectedAdmissionError", "no healthy devices")


@pytest.mark.parametrize(
    ("seen", "ready"),
    [
        (facts(failed=NO_GPU), "False/UnexpectedAdmissionError"),
        (facts(failed=MISSING), "False/ModelNotFound"),
        (facts(pod(), failed=None, problem=STUCK), "False/Stalled"),
        (facts(problem=STUCK), "False/Stalled"),
        (facts(pod(problem=NO_NODE), problem=STUCK), "False/Unschedulable"),
        (facts(READY, problem=STUCK), "True/Serving"),
        (facts(wanted=0, problem=STUCK), "True/ScaledToZero"),
    ],
)
def test_failed_pods_and_rollouts_that_stand_still(seen: Facts, ready: str) -> None:
    assert conditions(decide_status(service(), seen, {}, NOW))["Ready"] == ready
