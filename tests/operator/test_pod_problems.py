"""Pods in trouble, as kubelet and scheduler write them, and the words their owner gets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo_operator.facts import count_ending, read_deployment_problem, read_pods
from octavo_operator.pod_problems import find_problem


def container_pod(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "annotations": {"octavo.dev/revision": "r"}},
        "status": {"containerStatuses": [{"name": "octavo", "ready": False, **status}]},
    }


def ended(message: str = "", **fields: Any) -> dict[str, Any]:
    return {"terminated": {"exitCode": 1, "message": message, **fields}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


SAID = json.dumps({"reason": "ModelNotFound", "message": "no repository org/x on the Hub"})


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        (container_pod(state=ended(SAID)), "ModelNotFound", "no repository org/x"),
        (container_pod(state=ended(f"log\n{SAID}\n")), "ModelNotFound", "no repository org/x"),
        (
            container_pod(state=waiting("CrashLoopBackOff"), lastState=ended(SAID)),
            "ModelNotFound",
            "no repository",
        ),
        (container_pod(state={"running": {}}, lastState=ended(SAID)), "ModelNotFound", "no repo"),
        (
            container_pod(state=ended("Traceback\nKeyError: 'x'\n"), restartCount=3),
            "CrashLoopBackOff",
            "exit code 1 3 times, last words: KeyError: 'x'",
        ),
        (container_pod(state=ended("", exitCode=137)), "CrashLoopBackOff", "killed"),
        (
            container_pod(lastState=ended("", exitCode=137, reason="OOMKilled")),
            "OutOfMemory",
            "memory limit",
        ),
        (
            container_pod(state=waiting("ErrImagePull", "no such tag")),
            "ImagePullBackOff",
            "no such",
        ),
        (
            container_pod(state=waiting("CreateContainerConfigError", 'secret "hub" not found')),
            "ContainerConfigError",
            "hub",
        ),
        (container_pod(state=waiting("CrashLoopBackOff")), "CrashLoopBackOff", "again and again"),
        (
            {
                "metadata": {"name": "p"},
                "status": {
                    "conditions": [
                        {
                            "type": "PodScheduled",
                            "status": "False",
                            "reason": "Unschedulable",
                            "message": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
                        }
                    ]
                },
            },
            "Unschedulable",
            "2 Insufficient nvidia.com/gpu",
        ),
        (
            {"metadata": {"name": "p"}, "status": {"phase": "Failed", "reason": "Evicted"}},
            "Evicted",
            "failed",
        ),
        (
            {
                "metadata": {"name": "p"},
                "status": {
                    "initContainerStatuses": [{"name": "fetch", "state": ended("disk full")}]
                },
            },
            "CrashLoopBackOff",
            "the container fetch ended with exit code 1, last words: disk full",
        ),
    ],
)
def test_problems(pod: dict[str, Any], reason: str, words: str) -> None:
    problem = find_problem(pod)
    assert problem is not None
    assert problem.reason == reason
    assert words in problem.message


@pytest.mark.parametrize(
    "pod",
    [
        {"metadata": {"name": "p"}},
        container_pod(state=waiting("ContainerCreating")),
        container_pod(state={"running": {}}),
        container_pod(state={"running": {}}, lastState=ended("", exitCode=0)),
    ],
)
def test_no_problem_so_far(pod: dict[str, Any]) -> None:
    assert find_problem(pod) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"reason": "lower", "message": "x"}', '{"message": "x"}', '{"reason": 1}'],
)
def test_termination_messages_that_are_not_ours(text: str) -> None:
    problem = find_problem(container_pod(state=ended(text)))
    assert problem is not None
    assert problem.reason == "CrashLoopBackOff"


def test_ready_pods_have_no_problem() -> None:
    pod = container_pod(state={"running": {}}, lastState=ended(SAID), ready=True)
    pod["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    (read,) = read_pods([pod])
    assert (read.ready, read.problem, read.revision) == (True, None, "r")


def test_pods_that_do_not_count() -> None:
    deleted = {"metadata": {"name": "a", "deletionTimestamp": "now"}}
    failed = {"metadata": {"name": "b"}, "status": {"phase": "Failed"}}
    assert read_pods([deleted, failed]) == ()
    assert count_ending([deleted, failed]) == 1


def test_refused_pods() -> None:
    condition = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    deployment = {
        "metadata": {"generation": 2},
        "status": {"observedGeneration": 2, "conditions": [condition]},
    }
    problem = read_deployment_problem(deployment)
    assert problem is not None
    assert (problem.reason, problem.message) == ("PodsRefused", "exceeded quota")
    deployment["metadata"] = {"generation": 3}  # that was the template of before
    assert read_deployment_problem(deployment) is None
    assert read_deployment_problem(None) is None
