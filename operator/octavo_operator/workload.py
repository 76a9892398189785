"""Which Deployment a pass applies: the manifest's, the one that runs, or the last that ran. Pure,
but for what the cluster is asked before a rollout begins: a place, and whether pods are let in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from octavo_operator.conditions import (
    CONTAINER_CONFIG_ERROR,
    DOES_NOT_FIT,
    IMAGE_PULL_BACK_OFF,
    PROGRESSING,
    UNSCHEDULABLE,
    WORKLOAD_READY,
    Condition,
    Problem,
)
from octavo_operator.facts import Facts
from octavo_operator.gpu_room import Room
from octavo_operator.holding import decide_hold
from octavo_operator.names import (
    LAST_GOOD_ANNOTATION,
    REVISION_ANNOTATION,
    UPGRADE_ANNOTATION,
)
from octavo_operator.pinning import asks, hold, pin
from octavo_operator.rollback import decide_rollback, failed_before, read, remember, roll_back
from octavo_operator.rollout import rolls, with_cause
from octavo_operator.rollout_plan import decide_plan, read_plan, waits_in_vain, with_plan
from octavo_operator.spec import InferenceService

WAITS = (IMAGE_PULL_BACK_OFF, CONTAINER_CONFIG_ERROR, UNSCHEDULABLE)
"""What a pod waits in without a word; see rollback and rollout_plan for how long."""

Spare = Callable[[Mapping[str, Any]], Awaitable[Room]]
"""Room for one more pod of a template."""

Bound = Callable[[Mapping[str, Any]], Awaitable[str | None]]
"""A claim of a template that one node alone may mount; None if there is none."""

Refuses = Callable[[Mapping[str, Any]], Awaitable[Problem | None]]
"""Why no pod of a template is let in; None if it is."""


@dataclass(frozen=True, slots=True)
class Asks:
    """What the cluster is asked before a rollout; it does without what is None."""

    spare: Spare | None = None
    bound: Bound | None = None
    refuses: Refuses | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """`manifest` None: no pods yet. `problem`: what the manifest's owner must hear of it."""

    manifest: dict[str, Any] | None
    problem: Problem | None = None


async def choose_deployment(
    service: InferenceService,
    live: Mapping[str, Any] | None,
    rendered: dict[str, Any],
    *,
    image: str,
    default: str,
    facts: Facts,
    previous: Mapping[str, Any],
    cluster: Asks,
    now: str,
) -> Choice:
    """`rendered` is the manifest's with `image` (from pinned_image), `live` the cluster's, `facts`
    about it and its pods, `previous` the status before; facts.fit says what is known of the model.
    """
    wanted = pin(service, live, rendered, image=image, default=default)
    held = decide_hold(facts.fit)
    if live is None:
        return Choice(None, held) if held else Choice(with_cause(None, wanted))
    tries = asks(service, live)
    told = previous.get("rollout")
    stays = None if tries else failed_before(live, wanted)
    if stays is None and rolls(live, wanted):
        stays = held
        if stays is None and not tries and any(pod.ready for pod in facts.pods):
            stays = _does_not_fit(facts)
            if stays is None and cluster.refuses is not None:
                stays = await cluster.refuses(wanted["spec"]["template"])
        if stays is None:
            manifest = remember(live, with_cause(live, wanted, told), facts, previous)
            return Choice(await _planned(service, manifest, cluster, now))
    # NOTE: an edit that is held back is no reason to leave what runs to itself.
    if (why := decide_rollback(live, facts, previous, now)) is not None:
        return Choice(await _planned(service, roll_back(live, rendered, why), cluster, now), why)
    manifest = with_cause(live, wanted, told) if stays is None else hold(live, rendered)
    manifest = remember(live, manifest, facts, previous)
    plan = read_plan(live)
    if plan is not None:
        again = waits_in_vain(plan, facts, now)
        manifest = (
            await _planned(service, manifest, cluster, now) if again else with_plan(manifest, plan)
        )
    if stays is None and held is not None and held.reason != PROGRESSING:
        stays = held
    return Choice(manifest, stays)


def _does_not_fit(facts: Facts) -> Problem | None:
    """A rollout that can only end in pods that do not start does not begin while others serve."""
    fit: Condition | None = facts.fit
    if fit is None or fit.reason != DOES_NOT_FIT:
        return None
    return Problem(
        WORKLOAD_READY,
        DOES_NOT_FIT,
        f"{fit.message}; what runs stays. A new value of the annotation {UPGRADE_ANNOTATION} tries "
        "it all the same",
    )


def is_impatient(live: Mapping[str, Any] | None, facts: Facts) -> bool:
    """Whether something is decided soon that no event tells of."""
    plan = read_plan(live)
    beside = plan is not None and plan.surge and len(facts.pods) > facts.wanted
    return (beside or bool(read(live, LAST_GOOD_ANNOTATION))) and any(
        pod.problem is not None and pod.problem.reason in WAITS for pod in facts.current
    )


async def _planned(
    service: InferenceService, manifest: dict[str, Any], cluster: Asks, now: str
) -> dict[str, Any]:
    replicas, template = manifest["spec"]["replicas"], manifest["spec"]["template"]
    if not replicas:
        return manifest
    bound = None if cluster.bound is None else await cluster.bound(template)
    revision = manifest["metadata"]["annotations"][REVISION_ANNOTATION]
    if service.wants_gpu and cluster.spare is not None:
        room = await cluster.spare(template)
    elif bound is not None:
        room = Room.UNKNOWN
    else:
        return manifest
    gpus = service.spec.engine.tensor_parallel_size
    plan = decide_plan(revision, room, gpus=gpus, replicas=replicas, bound=bound)
    return with_plan(manifest, replace(plan, at=now))
