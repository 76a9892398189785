"""`decide_status`: facts in, the whole status out. Conditions are decided only here; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo_operator import conditions, downloads, names
from octavo_operator.conditions import (
    MODEL_READY,
    READY,
    WORKLOAD_READY,
    Condition,
)
from octavo_operator.facts import Facts
from octavo_operator.spec import InferenceService


def decide_status(
    service: InferenceService, facts: Facts, previous: Mapping[str, Any], now: str
) -> dict[str, Any]:
    """The status to write. `previous` gives the transition times, `now` is RFC 3339 in UTC."""
    decided = decide_conditions(service, facts)
    ready = sum(pod.ready for pod in facts.pods)
    status: dict[str, Any] = {
        "observedGeneration": service.generation,
        "replicas": len(facts.pods),
        "readyReplicas": ready,
        "readyOfWanted": f"{ready}/{facts.wanted}",
        "selector": names.selector_text(service.name),
        "url": names.url(service.name, service.namespace),
        "conditions": add_times(decided, previous, service.generation, now),
    }
    if ready and "reported" in previous:
        status["reported"] = previous["reported"]  # PodLoads writes it, beside the passes
    if facts.revision:
        status["rollout"] = {
            "revision": facts.revision,
            "reason": facts.cause[:4096],
            "updatedReplicas": len(facts.current),
            "complete": not facts.outdated
            and sum(pod.ready for pod in facts.current) >= facts.wanted,
            **({"plan": facts.plan} if facts.plan else {}),
            **({"waiting": facts.waiting[:4096]} if facts.waiting else {}),
        }
    return status


def decide_invalid(
    generation: int,
    problem: str,
    previous: Mapping[str, Any],
    now: str,
    *,
    reason: str = conditions.INVALID_SPEC,
) -> dict[str, Any]:
    """The status of an object that the operator cannot read or handle: what runs stays."""
    failing = Condition(WORKLOAD_READY, "False", reason, problem)
    unknown = Condition(MODEL_READY, "Unknown", reason, problem)
    decided = [decide_ready(unknown, failing, ""), unknown, failing]
    kept = {key: value for key, value in previous.items() if key != "conditions"}
    return {
        **kept,
        "observedGeneration": generation,
        "conditions": add_times(decided, previous, generation, now),
    }


def decide_conditions(service: InferenceService, facts: Facts) -> list[Condition]:
    model, workload = decide_model(facts), decide_workload(facts)
    if service.spec.suspend and _asleep(facts):
        # Not True, as asleep is: nothing wakes it but its owner.
        why = "spec.suspend is true: no pods run until it is false"
        model = Condition(MODEL_READY, "False", conditions.SUSPENDED, why)
        workload = Condition(WORKLOAD_READY, "False", conditions.SUSPENDED, why)
    url = names.url(service.name, service.namespace)
    result = [decide_ready(model, workload, url), model, workload]
    if facts.fit is not None:
        result.append(facts.fit)
    if facts.routing is not None:
        result.append(facts.routing)
    if facts.autoscaling is not None:
        result.append(facts.autoscaling)
    return result


def decide_ready(model: Condition, workload: Condition, url: str) -> Condition:
    """True if both are; otherwise the first that fails, or is False for now, or is Unknown."""
    by_urgency = sorted((model, workload), key=lambda each: (not each.failing, each.status))
    for each in by_urgency:  # "False" sorts before "True" before "Unknown"
        if each.status != "True":
            return Condition(READY, "False", each.reason, each.message)
    if workload.reason == conditions.SCALED_TO_ZERO:
        return Condition(READY, "True", conditions.SCALED_TO_ZERO, workload.message)
    return Condition(READY, "True", conditions.SERVING, f"the model answers at {url}")


def decide_model(facts: Facts) -> Condition:
    """Does a pod with the current settings have the model loaded?"""
    if any(pod.ready for pod in facts.current):
        return Condition(MODEL_READY, "True", conditions.LOADED, "the model is loaded")
    if _asleep(facts):
        return Condition(
            MODEL_READY, "True", conditions.SCALED_TO_ZERO, "no pod is wanted, none has the model"
        )
    for pod in facts.current:
        if pod.problem is not None and pod.problem.type == MODEL_READY:
            return Condition(MODEL_READY, "False", pod.problem.reason, pod.problem.message)
    if facts.failed is not None and facts.failed.type == MODEL_READY and not facts.current:
        return Condition(MODEL_READY, "False", facts.failed.reason, facts.failed.message)
    if any(pod.fetching for pod in facts.current):
        return Condition(
            MODEL_READY, "False", conditions.DOWNLOADING, facts.download or downloads.UNKNOWN
        )
    if all(pod.problem is not None for pod in facts.current):
        return Condition(
            MODEL_READY, "Unknown", conditions.NO_POD, "no pod runs yet that could load the model"
        )
    return Condition(MODEL_READY, "False", conditions.LOADING, "a pod starts and loads the model")


def decide_workload(facts: Facts) -> Condition:
    """Do the pods run as the manifest asks?

    One ready pod with the current settings, and none with older ones, is enough: a service that is
    being scaled up still serves.
    """
    ready = sum(pod.ready for pod in facts.current)
    problem = _workload_problem(facts)
    count = f"{ready} of {facts.wanted} replicas are ready"
    if facts.refusal is not None:
        return Condition(WORKLOAD_READY, "False", facts.refusal.reason, facts.refusal.message)
    if _asleep(facts):
        return Condition(WORKLOAD_READY, "True", conditions.SCALED_TO_ZERO, "no pod is wanted")
    waits = problem is not None and problem.reason == conditions.UNSCHEDULABLE and facts.ending
    if ready == 0 and waits:
        return Condition(
            WORKLOAD_READY,
            "False",
            conditions.ROLLING_OUT,
            f"{count}; the next pod waits for the place of {facts.ending} that are ending",
        )
    if ready < facts.wanted and (ready == 0 or facts.outdated) and problem is not None:
        return Condition(WORKLOAD_READY, "False", problem.reason, problem.message)
    if facts.outdated:
        still = sum(pod.ready for pod in facts.outdated)
        return Condition(
            WORKLOAD_READY,
            "False",
            conditions.ROLLING_OUT,
            f"{count} with the new settings, {still} with the old ones still answer "
            f"({facts.cause})",
        )
    if ready == 0:
        return Condition(WORKLOAD_READY, "False", conditions.PROGRESSING, count)
    if ready < facts.wanted:
        more = f"; {problem.reason}: {problem.message}" if problem is not None else ""
        return Condition(WORKLOAD_READY, "True", conditions.SOME_REPLICAS_READY, count + more)
    return Condition(WORKLOAD_READY, "True", conditions.ALL_REPLICAS_READY, count)


def _asleep(facts: Facts) -> bool:
    return facts.wanted == 0 and bool(facts.revision) and facts.refusal is None


def _workload_problem(facts: Facts) -> conditions.Problem | None:
    """The first pod's; a model that does not load keeps the workload down in the same words.

    If no pod says anything: what the last one failed of, or that the rollout stands still.
    """
    found = [pod.problem for pod in facts.current if pod.problem is not None]
    about_pods = [each for each in found if each.type == WORKLOAD_READY]
    last = facts.failed if not facts.current else None
    return next(iter([*about_pods, *found]), last or facts.problem)


def add_times(
    decided: list[Condition], previous: Mapping[str, Any], generation: int, now: str
) -> list[dict[str, Any]]:
    """Conditions as the API has them; the transition time stays while the status does."""
    before = {each["type"]: each for each in previous.get("conditions") or []}
    result = []
    for each in decided:
        old = before.get(each.type)
        same = old is not None and old["status"] == each.status
        result.append(
            {
                "type": each.type,
                "status": each.status,
                "reason": each.reason,
                "message": each.message[:32768],
                "lastTransitionTime": old["lastTransitionTime"] if same and old else now,
                "observedGeneration": generation,
            }
        )
    return result
