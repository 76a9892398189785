"""A pod is tried in a dry run; only a word about the pod counts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.operator.services import service

from octavo_operator.admission import Admission
from octavo_operator.kube import KubeError
from octavo_operator.render import render_deployment

TEMPLATE = render_deployment(service(), image="octavo-server:1", replicas=1)["spec"]["template"]


class Judge:
    def __init__(self, error: KubeError | None = None) -> None:
        self.error = error
        self.pods: list[dict[str, Any]] = []

    async def create(self, pod: dict[str, Any], *, dry_run: bool) -> None:
        assert dry_run
        self.pods.append(pod)
        if self.error is not None:
            raise self.error


def ask(judge: Any) -> str:
    found = asyncio.run(Admission(judge).refuses("ns", "tiny", TEMPLATE))
    return "" if found is None else f"{found.reason}: {found.message}"


def test_the_pod_is_the_templates() -> None:
    judge = Judge()
    assert ask(judge) == ""
    (pod,) = judge.pods
    assert pod["spec"] == TEMPLATE["spec"]
    assert pod["metadata"]["labels"] == TEMPLATE["metadata"]["labels"]
    assert (pod["apiVersion"], pod["kind"]) == ("v1", "Pod")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (403, 'pods "tiny-trial" is forbidden: violates PodSecurity "restricted": hostNetwork'),
        (403, 'is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi'),
        (403, 'error looking up service account ns/other: serviceaccount "other" not found'),
        (422, 'Pod "tiny-trial" is invalid: spec.hostname: Invalid value: "A_B"'),
        (400, 'admission webhook "policy.example" denied the request: no GPU on Fridays'),
    ],
)  # fmt: skip
def test_a_refusal_is_told(code: int, words: str) -> None:
    told = ask(Judge(KubeError(code, "Forbidden", words)))
    assert told.startswith("PodsRefused: ")
    assert words in told
    assert "what runs stays" in told


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (403, 'pods is forbidden: User "x" cannot create resource "pods" in API group ""'),
        (403, 'pods "a" is forbidden: exceeded quota: gpus, requested: 1, used: 1, limited: 1'),
        (400, 'admission webhook "old.example" does not support dry run'),
        (404, "the server could not find the requested resource"),
    ],
)
def test_what_says_nothing_of_the_pod_holds_nothing_up(code: int, words: str) -> None:
    assert ask(Judge(KubeError(code, "", words))) == ""


@pytest.mark.parametrize("code", [429, 500, 503])
def test_an_api_server_in_trouble_is_asked_again(code: int) -> None:
    with pytest.raises(KubeError):
        ask(Judge(KubeError(code, "", "etcdserver: request timed out")))
