"""How new GPU pods replace old ones: beside them where a GPU is spare, else in their place. Pure.

Decided when a rollout begins, and kept on the Deployment while it lasts: the pods that it starts
take the very GPUs that were counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from octavo_operator import conditions, names
from octavo_operator.facts import Facts, age_seconds
from octavo_operator.gpu_room import Room
from octavo_operator.rollback import read

WAIT_SECONDS = 60.0
"""How long a new pod may wait beside its elders for the GPU that was spare when it was made."""

LOOK_AGAIN_SECONDS = 300.0
"""From one look at the nodes to the next, while a new pod waits all the same: it is a request for
each node.
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """Of the rollout to `revision`. `surge`: the new pod starts first; else an old one goes first.

    `why` is a sentence for people, `at` when it was decided (RFC 3339).
    """

    revision: str
    surge: bool
    why: str
    at: str = ""


def read_plan(live: Mapping[str, Any] | None) -> Plan | None:
    """The Deployment's, if it is about its present revision."""
    found = read(live, names.PLAN_ANNOTATION)
    annotations = (live or {}).get("metadata", {}).get("annotations") or {}
    if found.get("revision") != annotations.get(names.REVISION_ANNOTATION):
        return None
    try:
        return Plan(str(found["revision"]), bool(found["surge"]), str(found["why"]),
                    str(found.get("at", "")))  # fmt: skip
    except KeyError:
        return None


def decide_plan(
    revision: str, room: Room, *, gpus: int, replicas: int, bound: str | None = None
) -> Plan:
    """`bound` names a claim of the pods that one node alone may mount."""
    outage = ": an outage is expected until the new pod is ready" if replicas == 1 else ""
    if bound is not None and room is not Room.NONE:
        one = f"one node alone may mount the claim {bound}: a new pod takes an old one's place"
        return Plan(revision, False, one + outage)
    what = "a GPU is" if gpus == 1 else f"{gpus} GPUs are"
    if room is Room.NOW:
        return Plan(revision, True, f"{what} spare: new pods get ready before old ones go")
    if room is Room.NONE:
        return Plan(
            revision,
            True,
            f"no node would have {gpus} GPU{'s' * (gpus > 1)} for a new pod even without an old "
            "one: it waits beside the old ones, which serve on",
        )
    if room is Room.AFTER:
        return Plan(revision, False, f"no GPU is spare: a new pod takes an old one's place{outage}")
    unseen = "the operator cannot see whether a GPU is spare: a new pod takes an old one's place"
    return Plan(revision, False, unseen + outage)


def waits_in_vain(plan: Plan, facts: Facts, now: str) -> bool:
    """Whether the plan is to be made anew: somebody else has got the GPU."""
    if not plan.surge or len(facts.pods) <= facts.wanted:
        return False  # none waits beside its elders
    waiting = [
        pod.created
        for pod in facts.current
        if pod.problem is not None
        and pod.problem.reason == conditions.UNSCHEDULABLE
        and age_seconds(pod.created, now) >= WAIT_SECONDS
    ]
    if not waiting:
        return False
    looked_since = plan.at and age_seconds(min(waiting), plan.at) >= WAIT_SECONDS
    return not looked_since or age_seconds(plan.at, now) >= LOOK_AGAIN_SECONDS


def with_plan(manifest: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The Deployment to apply, with the plan and its strategy."""
    metadata, spec = manifest["metadata"], manifest["spec"]
    surge, unavailable = (1, 0) if plan.surge else (0, 1)
    text = json.dumps(asdict(plan), sort_keys=True, separators=(",", ":"))
    return {
        **manifest,
        "metadata": {
            **metadata,
            "annotations": {**metadata["annotations"], names.PLAN_ANNOTATION: text},
        },
        "spec": {
            **spec,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable},
            },
        },
    }
