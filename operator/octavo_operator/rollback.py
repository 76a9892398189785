"""Back to the last pod template that worked, when a new one's pods fail and none ever got ready.

The Deployment remembers both: the template before, until the new one has proven itself, and which
settings failed, until its owner writes others or asks for another attempt. Pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from octavo_operator import conditions, names
from octavo_operator.conditions import MODEL_READY, WORKLOAD_READY, Problem
from octavo_operator.facts import Facts, PodFacts
from octavo_operator.render.deployment import is_template_of, mark

FAILURES = 3
"""Ends of a container that are no accident any more: kubelet has waited 10 and 20 s in between."""

STUCK_SECONDS = 60.0
"""How long an image may not be pulled or a container not be made: a registry may blink."""

UNSCHEDULABLE_SECONDS = 300.0
"""How long no node may have a place, while nothing serves: a cluster may have to add one."""

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
    live: Mapping[str, Any], manifest: dict[str, Any], previous: Mapping[str, Any]
) -> dict[str, Any]:
    """`manifest`, the Deployment to apply, with what to go back to should its pods fail.

    `previous` is the status: it says whether the live revision has worked.
    """
    before = _annotations(live)
    here, next_one = before.get(names.REVISION_ANNOTATION), _revision(manifest)
    proven = _is_proven(live, previous)
    if proven and here == next_one:
        return manifest
    if proven:
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
    if _is_proven(live, previous) or any(pod.ready for pod in facts.current):
        return None
    serves = any(pod.ready for pod in facts.outdated)
    found = [each for pod in facts.current if (each := _final(pod, now, serves)) is not None]
    if facts.problem is not None and not facts.ending:
        # A quota is often only held by pods that are just gone.
        quota = "exceeded quota" in facts.problem.message
        if facts.problem.reason == conditions.STALLED or not quota:
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
    }
    template = mark(json.loads(good["template"]), good["revision"])
    spec = {**rendered["spec"], "template": template}
    return _with({**rendered, "spec": spec}, annotations)


def read(live: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """An annotation of ours that holds a JSON object; {} if there is none, or somebody's words."""
    try:
        found = json.loads(_annotations(live).get(name) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_proven(live: Mapping[str, Any], previous: Mapping[str, Any]) -> bool:
    """Whether the live revision has served, all of its pods. A suspended service proves nothing."""
    rollout = previous.get("rollout") or {}
    return (
        rollout.get("revision") == _annotations(live).get(names.REVISION_ANNOTATION)
        and bool(rollout.get("complete"))
        and previous.get("readyReplicas", 0) > 0
    )


def _final(pod: PodFacts, now: str, serves: bool) -> Problem | None:
    """The pod's problem, if waiting for its end is no use."""
    problem = pod.problem
    if problem is None:
        return None
    age = age_seconds(pod.created, now)
    if problem.reason in (conditions.IMAGE_PULL_BACK_OFF, conditions.CONTAINER_CONFIG_ERROR):
        return problem if age >= STUCK_SECONDS else None
    if problem.reason == conditions.UNSCHEDULABLE:
        return problem if age >= UNSCHEDULABLE_SECONDS and not serves else None
    if problem.type == MODEL_READY or problem.reason == conditions.CRASH_LOOP_BACK_OFF:
        return problem if pod.restarts >= FAILURES - 1 else None
    return None


def age_seconds(then: str, now: str) -> float:
    """Between two times of RFC 3339; 0.0 if one is none."""
    try:
        return (datetime.fromisoformat(now) - datetime.fromisoformat(then)).total_seconds()
    except (ValueError, TypeError):
        return 0.0


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


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
