"""Which Deployment a pass applies: the manifest's, the one that runs, or the last that ran. Pure,
but for the look at the GPUs that a rollout begins with.
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
    spare: Spare | None,
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
    if not tries and (failed := failed_before(live, wanted)) is not None:
        return Choice(_held(service, live, rendered), failed)
    told = previous.get("rollout")
    if rolls(live, wanted):
        stays = held or (None if tries else _does_not_fit(facts))
        if stays is not None:
            return Choice(_held(service, live, rendered), stays)
        manifest = remember(live, with_cause(live, wanted, told), facts, previous)
        return Choice(await _planned(service, manifest, spare, now))
    if (why := decide_rollback(live, facts, previous, now)) is not None:
        return Choice(await _planned(service, roll_back(live, rendered, why), spare, now), why)
    manifest = remember(live, with_cause(live, wanted, told), facts, previous)
    plan = read_plan(live)
    if plan is not None and service.wants_gpu:
        again = waits_in_vain(plan, facts, now)
        manifest = (
            await _planned(service, manifest, spare, now) if again else with_plan(manifest, plan)
        )
    return Choice(manifest, None if held is None or held.reason == PROGRESSING else held)


def _does_not_fit(facts: Facts) -> Problem | None:
    """A rollout that can only end in pods that do not start does not begin while others serve."""
    fit: Condition | None = facts.fit
    if fit is None or fit.reason != DOES_NOT_FIT or not any(pod.ready for pod in facts.pods):
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
    decides = bool(read(live, LAST_GOOD_ANNOTATION)) or (plan is not None and plan.surge)
    return decides and any(
        pod.problem is not None and pod.problem.reason in WAITS for pod in facts.current
    )


def _held(
    service: InferenceService, live: Mapping[str, Any], rendered: dict[str, Any]
) -> dict[str, Any]:
    """`hold`, in the midst of a rollout too: its plan keeps the old pods up."""
    manifest, plan = hold(live, rendered), read_plan(live)
    return manifest if plan is None or not service.wants_gpu else with_plan(manifest, plan)


async def _planned(
    service: InferenceService, manifest: dict[str, Any], spare: Spare | None, now: str
) -> dict[str, Any]:
    replicas = manifest["spec"]["replicas"]
    if spare is None or not service.wants_gpu or not replicas:
        return manifest
    template = manifest["spec"]["template"]
    gpus = service.spec.engine.tensor_parallel_size
    revision = manifest["metadata"]["annotations"][REVISION_ANNOTATION]
    claims = service.spec.cache.persistent_volume_claim is not None
    room = Room.UNKNOWN if claims else await spare(template)
    plan = decide_plan(revision, room, gpus=gpus, replicas=replicas, claims_cache=claims)
    return with_plan(manifest, replace(plan, at=now))
