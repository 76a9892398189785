"""Back to the last pod template that worked, when a new one's pods fail and none ever got ready.

The Deployment remembers both: the template before, until the new one has proven itself, and which
settings failed, until its owner writes others or asks for another attempt. Pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from octavo_operator import conditions, names
from octavo_operator.conditions import MODEL_READY, WORKLOAD_READY, Problem
from octavo_operator.facts import Facts, PodFacts, age_seconds
from octavo_operator.render.deployment import is_template_of, mark

FAILURES = 3
"""Ends of a container that are no accident any more: kubelet has waited 10 and 20 s in between."""

STUCK_SECONDS = 60.0
"""How long an image may not be pulled or a container not be made: a registry may blink."""

UNSCHEDULABLE_SECONDS = 300.0
"""How long no node may have a place, while nothing serves: a cluster may have to add one. It begins
when the pods of before must be gone: until then they may hold the place.
"""

HUB_SECONDS = 600.0
"""How long the Hub may not answer: what was before asks it too, unless a cache has the model."""

_LONGEST = 98304
"""Characters. Annotations share 256 KiB; a larger template is not gone back to."""

_CARRIED = {
    "revision": names.REVISION_ANNOTATION,
    "rendered": names.RENDERED_ANNOTATION,
    "template": names.TEMPLATE_ANNOTATION,
    "image": names.DEFAULT_IMAGE_ANNOTATION,
}
"""What makes a revision, and the annotations of the Deployment that have it."""


def remember(
    live: Mapping[str, Any], manifest: dict[str, Any], facts: Facts, previous: Mapping[str, Any]
) -> dict[str, Any]:
    """`manifest`, the Deployment to apply, with what to go back to should its pods fail.

    `facts` are of the live Deployment, `previous` is the status.
    """
    before = _annotations(live)
    here = before.get(names.REVISION_ANNOTATION)
    served = _has_served(live, facts, previous)
    if served and here == _revision(manifest):
        return _with(
            _without(manifest, names.LAST_GOOD_ANNOTATION), {names.SERVED_ANNOTATION: here}
        )
    if served:
        good = {key: before.get(name, "") for key, name in _CARRIED.items()}
    else:
        good = read(live, names.LAST_GOOD_ANNOTATION)
    text = _dump(good)
    if not good.get("template") or len(text) > _LONGEST:
        return manifest
    return _with(manifest, {names.LAST_GOOD_ANNOTATION: text})


def failed_before(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> Problem | None:
    """If these settings failed the last time, and nothing was changed since."""
    failed = read(live, names.FAILED_ANNOTATION)
    if not failed or failed.get("settings") != _settings(wanted["metadata"]["annotations"]):
        return None
    return Problem(WORKLOAD_READY, conditions.ROLLED_BACK, str(failed.get("message", "")))


def decide_rollback(
    live: Mapping[str, Any], facts: Facts, previous: Mapping[str, Any], now: str
) -> Problem | None:
    """Why the live revision is given up; None if it is not, or there is nothing to go back to.

    `facts` are of the live Deployment; its pods' ages are counted to `now`, RFC 3339. `previous` is
    the status: what has worked once is not given up.
    """
    good = read(live, names.LAST_GOOD_ANNOTATION)
    here = _annotations(live).get(names.REVISION_ANNOTATION)
    if not is_template_of(good.get("template"), good.get("revision")) or good["revision"] == here:
        return None
    if _has_served(live, facts, previous):
        return None
    serves = any(pod.ready for pod in facts.outdated)
    patience = UNSCHEDULABLE_SECONDS + _grace_seconds(good)
    found = [
        each
        for pod in facts.current
        if (each := _final(pod, now)) is not None
        or (each := _without_place(pod, facts, now, patience)) is not None
    ]
    if facts.problem is not None and _is_final(facts.problem, facts, serves):
        found.append(facts.problem)
    if not found:
        return None
    return Problem(
        WORKLOAD_READY,
        conditions.ROLLED_BACK,
        f"pods with the new settings fail ({found[0].reason}: {found[0].message}); those of before "
        f"run again. Change the manifest, or set the annotation {names.UPGRADE_ANNOTATION} to a "
        "new value to try once more",
    )


def roll_back(live: Mapping[str, Any], rendered: dict[str, Any], why: Problem) -> dict[str, Any]:
    """The Deployment to apply: the last good pods, as many as `rendered` has.

    `live` has passed `decide_rollback`.
    """
    before = _annotations(live)
    good = read(live, names.LAST_GOOD_ANNOTATION)
    failed = {
        "revision": before.get(names.REVISION_ANNOTATION, ""),
        "settings": _settings(before),
        "message": why.message[:4096],
    }
    annotations = {
        **{name: str(good[key]) for key, name in _CARRIED.items() if good.get(key)},
        names.UPGRADE_ANNOTATION: before.get(names.UPGRADE_ANNOTATION, ""),
        names.WAITING_ANNOTATION: "",
        names.CHANGE_CAUSE_ANNOTATION: f"rolled back: {why.message}"[:4096],
        names.FAILED_ANNOTATION: _dump(failed),
        # Until it serves again: another attempt may come before.
        names.LAST_GOOD_ANNOTATION: _dump(good),
        names.SERVED_ANNOTATION: str(good["revision"]),
    }
    template = mark(json.loads(good["template"]), good["revision"])
    spec = {**rendered["spec"], "template": template}
    return _with({**rendered, "spec": spec}, annotations)


def read(live: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """An annotation of ours that holds a JSON object; {} if there is none, or somebody's words."""
    try:
        found = json.loads(_annotations(live).get(name) or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _has_served(live: Mapping[str, Any], facts: Facts, previous: Mapping[str, Any]) -> bool:
    """Whether a pod of the live revision is ready, or was.

    One is enough: not all may ever get ready, where an autoscaler wants more than there is room
    for. The status tells it of Deployments of an operator that wrote no such annotation.
    """
    here = _annotations(live).get(names.REVISION_ANNOTATION)
    if any(pod.ready for pod in facts.current):
        return True
    if here is not None and _annotations(live).get(names.SERVED_ANNOTATION) == here:
        return True
    rollout = previous.get("rollout") or {}
    complete = rollout.get("revision") == here and bool(rollout.get("complete"))
    return complete and previous.get("readyReplicas", 0) > 0


def _is_final(problem: Problem, facts: Facts, serves: bool) -> bool:
    """The whole Deployment's problem, likewise."""
    if facts.ending:
        return False  # a quota, or the place, is only held by pods that are just gone
    if problem.reason == conditions.STALLED:
        # Beside pods that serve there is no hurry to get a place.
        return not serves or not any(_has_no_place(pod) for pod in facts.current)
    return "exceeded quota" not in problem.message


def _has_no_place(pod: PodFacts) -> bool:
    return pod.problem is not None and pod.problem.reason == conditions.UNSCHEDULABLE


def _without_place(pod: PodFacts, facts: Facts, now: str, patience: float) -> Problem | None:
    """Its problem, if no node has a place for it though nothing serves and nothing drains."""
    if not _has_no_place(pod) or facts.ending or any(each.ready for each in facts.outdated):
        return None
    return pod.problem if age_seconds(pod.created, now) >= patience else None


def _grace_seconds(good: Mapping[str, Any]) -> float:
    """How long pods of the template of before may take to end."""
    try:
        return float(json.loads(good["template"])["spec"].get("terminationGracePeriodSeconds", 30))
    except (AttributeError, KeyError, TypeError, ValueError):
        return 30.0


def _final(pod: PodFacts, now: str) -> Problem | None:
    """The pod's problem, if waiting for its end is no use."""
    problem = pod.problem
    if problem is None:
        return None
    if problem.reason in (conditions.IMAGE_PULL_BACK_OFF, conditions.CONTAINER_CONFIG_ERROR):
        # It may have waited for its node for long.
        since = pod.scheduled or pod.created
        return problem if age_seconds(since, now) >= STUCK_SECONDS else None
    if problem.reason == conditions.HUB_UNREACHABLE:
        return problem if age_seconds(pod.created, now) >= HUB_SECONDS else None
    if problem.type == MODEL_READY or problem.reason == conditions.CRASH_LOOP_BACK_OFF:
        return problem if pod.restarts >= FAILURES - 1 else None
    return None


def _settings(annotations: Mapping[str, str]) -> str:
    return hashlib.sha256(annotations.get(names.RENDERED_ANNOTATION, "").encode()).hexdigest()[:16]


def _revision(manifest: Mapping[str, Any]) -> str:
    return str(manifest["metadata"]["annotations"][names.REVISION_ANNOTATION])


def _annotations(live: Mapping[str, Any] | None) -> Mapping[str, str]:
    return (live or {}).get("metadata", {}).get("annotations") or {}


def _with(manifest: dict[str, Any], annotations: Mapping[str, str]) -> dict[str, Any]:
    metadata = manifest["metadata"]
    return {
        **manifest,
        "metadata": {**metadata, "annotations": {**metadata["annotations"], **annotations}},
    }


def _without(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    metadata = manifest["metadata"]
    kept = {key: value for key, value in metadata["annotations"].items() if key != name}
    return {**manifest, "metadata": {**metadata, "annotations": kept}}


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
