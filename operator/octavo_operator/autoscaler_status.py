"""The condition AutoscalingReady, from what the HorizontalPodAutoscaler says of itself. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from octavo_operator import names
from octavo_operator.conditions import (
    AUTOSCALING_READY,
    AWAITING_AUTOSCALER,
    NO_METRICS,
    NOT_MANAGED,
    SCALING,
    SECOND_AUTOSCALER,
    SUSPENDED,
    TARGET_UNUSABLE,
    Condition,
    Status,
)
from octavo_operator.metrics_api.questions import GROUP
from octavo_operator.registrations import is_ours
from octavo_operator.scaling_targets import decide_targets
from octavo_operator.spec import InferenceService


def decide_autoscaling(
    service: InferenceService, live: Mapping[str, Any] | None, others: Sequence[str]
) -> Condition | None:
    """None without spec.autoscaling. `live` is the service's own autoscaler, `others` are the names
    of those of somebody else that scale it, too.
    """
    scaling = service.spec.autoscaling
    if scaling is None:
        return None
    if service.spec.suspend:
        return _said("False", SUSPENDED, "the service is suspended: nothing scales it")
    if scaling.provider != "HPA":
        if others:
            return _said("True", NOT_MANAGED, f"{_named(others)} scales it")
        return _said("Unknown", NOT_MANAGED, "provider is None: whoever scales it uses its /scale")
    if others:
        return _said(
            "False",
            SECOND_AUTOSCALER,
            f"{_named(others)} scales it, too: delete it, or set autoscaling.provider to None",
        )
    told = {
        each["type"]: each for each in ((live or {}).get("status") or {}).get("conditions") or ()
    }
    able, active = told.get("AbleToScale", {}), told.get("ScalingActive", {})
    for found, reason in ((able, TARGET_UNUSABLE), (active, NO_METRICS)):
        if found.get("status") == "False":
            what = f"{found.get('reason')}: {found.get('message')}"
            return _said("False", reason, f"the number of pods stays: {what}")
    if active.get("status") != "True":
        waits = "the HorizontalPodAutoscaler has not looked at it yet"
        return _said("Unknown", AWAITING_AUTOSCALER, waits)
    by = " and ".join(each.metric for each in decide_targets(service))
    least = max(1, scaling.min_replicas)
    between = f"between {least} and {scaling.max_replicas} pods, by {by}"
    return _said("True", SCALING, between)


def with_provider(said: Condition, providers: Sequence[Mapping[str, Any]]) -> Condition:
    """Why there are no metrics, if that is so because of who serves them: `providers` are the
    APIServices of custom metrics.
    """
    if not providers:
        why = f"nobody serves {GROUP}: the chart's value metricsApi.enabled installs what does"
    elif others := [each for each in providers if not is_ours(each)]:
        service = (others[0].get("spec") or {}).get("service") or {}
        why = (
            f"the APIService {others[0]['metadata']['name']} belongs to "
            f"{service.get('namespace')}/{service.get('name')}, so Octavo's metrics API registers "
            "none"
        )
    else:
        return said
    return _said("False", NO_METRICS, f"{said.message}; {why}")


def scales(autoscaler: Mapping[str, Any], service: InferenceService) -> bool:
    """Whether it scales the InferenceService, or its Deployment behind its back."""
    target = (autoscaler.get("spec") or {}).get("scaleTargetRef") or {}
    kind = (str(target.get("apiVersion", "")).partition("/")[0], target.get("kind"))
    ours = (names.GROUP, names.KIND), ("apps", "Deployment")
    return target.get("name") == service.name and kind in ours


def looks_of(autoscaler: Mapping[str, Any]) -> Any:
    """What of it asks for a pass when it differs: not its figures, nor the age of one, which do all
    the time.
    """
    told = (autoscaler.get("status") or {}).get("conditions") or ()
    return autoscaler.get("spec"), [_look_of(each) for each in told]


def _look_of(told: Mapping[str, Any]) -> list[Any]:
    words = str(told.get("message")) if told.get("status") == "False" else ""
    return [*(told.get(key) for key in ("type", "status", "reason")), re.sub(r"\d+ s\b", "", words)]


def _named(others: Sequence[str]) -> str:
    kind = "HorizontalPodAutoscaler" + "s" * (len(others) > 1)
    return f"the {kind} {', '.join(others)}"


def _said(status: Status, reason: str, message: str) -> Condition:
    return Condition(AUTOSCALING_READY, status, reason, message)
