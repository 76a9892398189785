"""One level-based pass over one InferenceService: it looks at everything and remembers nothing."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from octavo_operator import names
from octavo_operator.admission import Admission
from octavo_operator.apply import Refused, apply, find_conflict
from octavo_operator.autoscalers import Autoscalers, Neighbours
from octavo_operator.claims import Claims
from octavo_operator.conditions import (
    FORBIDDEN,
    FOREIGN_CHANGE,
    INTERNAL_ERROR,
    MISSING_CRDS,
    NAME_CONFLICT,
    PROGRESSING,
    ROUTE_REFUSED,
    SECOND_AUTOSCALER,
    WORKLOAD_READY,
    Condition,
    Problem,
)
from octavo_operator.deletion_cost import shrinks, write_costs
from octavo_operator.events import post_event
from octavo_operator.facts import with_download
from octavo_operator.foreign import describe_foreign_change
from octavo_operator.gpu_room import Room
from octavo_operator.holding import keep_verdict
from octavo_operator.installation import Installation
from octavo_operator.kube import Kube, KubeError, KubeUnreachable
from octavo_operator.observe import (
    observe_objects,
    observe_pods,
    read_extras,
    read_facts,
    with_extras,
)
from octavo_operator.pinning import knows_fetch, pinned_image
from octavo_operator.pod_loads import PodLoads
from octavo_operator.pod_requests import pod_name
from octavo_operator.render import ASIDE, SOMETIMES, render
from octavo_operator.render.deployment import choose_image
from octavo_operator.replicas import read_replicas, seed_replicas, wanted_before
from octavo_operator.routes import Routes
from octavo_operator.spec import InferenceService, InvalidSpec, parse
from octavo_operator.status import decide_invalid, decide_status
from octavo_operator.transitions import Event, decide_events
from octavo_operator.workload import Asks, choose_deployment, is_impatient

log = logging.getLogger(__name__)

Look = Callable[[InferenceService], Awaitable[Condition]]
"""Gives the condition FitsAccelerator."""

LookForRoom = Callable[..., Awaitable[Room]]
"""`GpuRoom.look`."""


@dataclass(frozen=True, slots=True)
class Means:
    """What a pass may ask besides the API server's objects; it does without what is None.

    `look` tells whether the model fits its GPUs, `room` whether a GPU is spare, `neighbours` who
    else scales the service, `claims` whether two pods may mount theirs, `admission` whether pods
    are let in, `loads` how busy they are; `watch_routes` is told of the routes that there are.
    """

    look: Look | None = None
    room: LookForRoom | None = None
    neighbours: Neighbours | None = None
    claims: Claims | None = None
    admission: Admission | None = None
    loads: PodLoads | None = None
    watch_routes: Callable[[Mapping[str, Any]], None] = lambda made: None


LOOK_AGAIN_SECONDS = 15.0
UNSEEN_ENDS = (NAME_CONFLICT, FORBIDDEN, MISSING_CRDS, ROUTE_REFUSED, SECOND_AUTOSCALER)
"""Objects of others have no label of ours, and neither RBAC nor CRDs are watched."""


def utc_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def reconcile(
    kube: Kube,
    namespace: str,
    name: str,
    *,
    image: str,
    means: Means = Means(),
    installation: Installation = Installation(),
    now: Callable[[], str] = utc_now,
) -> float | None:
    """parse -> render -> apply -> observe -> decide_status -> write, once and only if it differs.

    Returns also for a user's mistake, which becomes a condition: then the seconds after which to
    look again if its end causes no event, else None. Raises KubeError or KubeUnreachable for what
    another attempt may mend, and whatever our own mistake raises: that becomes a condition first.
    """
    live = await kube.get(names.API_VERSION, names.KIND, namespace, name)
    if live is None or live["metadata"].get("deletionTimestamp"):
        return None  # its objects go with it: they name it as their owner
    previous = live.get("status") or {}
    generation = live["metadata"]["generation"]
    try:
        service = parse(live, gpu_resource=installation.gpu_resource)
        status, impatient = await _reconcile_valid(
            kube, live, service, image, means, installation, now
        )
    except InvalidSpec as error:
        status, impatient = decide_invalid(generation, str(error), previous, now()), False
    except KubeUnreachable:
        raise
    except Exception as error:
        if (problem := explain_failure(error, previous)) is None:
            raise
        reason, message = problem
        status = decide_invalid(generation, message, previous, now(), reason=reason)
        await _write(kube, live, previous, status, now)
        raise
    await _write(kube, live, previous, status, now)
    blocked = any(each["reason"] in UNSEEN_ENDS for each in status["conditions"])
    return LOOK_AGAIN_SECONDS if blocked or impatient else None


def explain_failure(error: Exception, previous: dict[str, Any]) -> tuple[str, str] | None:
    """(reason, message) of a pass that failed; None if it is not worth a word yet.

    An error of the API server is often gone at the next attempt. An object that has conditions
    keeps them meanwhile; a new one would otherwise say nothing for as long as the error lasts.
    """
    if not isinstance(error, KubeError):
        what = f"{type(error).__name__}: {error}".replace("\n", " ")[:1024]
        return INTERNAL_ERROR, f"a defect of the operator, which tries again: {what}"
    if previous.get("conditions") or error.code in (404, 409, 429):
        return None
    reason = FORBIDDEN if error.code == 403 else INTERNAL_ERROR
    return reason, f"the API server fails, the operator tries again: {error}"


async def _write(
    kube: Kube,
    live: dict[str, Any],
    previous: dict[str, Any],
    status: dict[str, Any],
    now: Callable[[], str],
) -> None:
    if (change := diff(previous, status)) is None:
        return
    await kube.patch_status(live, change)
    metadata = live["metadata"]
    for event in decide_events(previous, status):
        where = f"{metadata['namespace']}/{metadata['name']}"
        log.info("%s: %s: %s", where, event.reason, event.message)
        await post_event(kube, live, event, now())


async def _reconcile_valid(
    kube: Kube,
    live: dict[str, Any],
    service: InferenceService,
    image: str,
    means: Means,
    installation: Installation,
    now: Callable[[], str],
) -> tuple[dict[str, Any], bool]:
    """The status, and whether to look again soon: of the end of patience with a pod, and of how far
    a download is, no event tells.
    """
    previous = live.get("status") or {}
    rendered = render(service)
    wanted = [each["kind"] for each in rendered if each["kind"] not in ASIDE]
    objects = await observe_objects(kube, service, wanted)
    seen = await observe_pods(kube, service)
    deployment = objects["Deployment"]
    routes = await Routes.observe(kube, service, rendered, deployment)
    autoscalers = await Autoscalers.observe(kube, service, rendered, deployment, means.neighbours)
    if conflicts := {
        kind: conflict
        for kind in wanted
        if (each := objects[kind]) is not None
        and (conflict := find_conflict(service, each)) is not None
    }:
        # Nothing is applied then: pods behind somebody else's Service would serve nobody.
        ours = None if "Deployment" in conflicts else deployment
        taken = Problem(WORKLOAD_READY, NAME_CONFLICT, "; ".join(conflicts.values()))
        facts = read_facts(service, ours, seen, problem=taken, now=now())
        return decide_status(service, facts, previous, now()), False
    extras = {
        kind: each
        for kind, each in objects.items()
        if kind in SOMETIMES and each is not None and find_conflict(service, each) is None
    }
    replicas = None if service.spec.suspend else wanted_before(previous)
    if deployment is not None:
        replicas = read_replicas(deployment, service.spec.suspend)
    replicas = await seed_replicas(kube, live, service, replicas)
    fit = None
    if means.look is not None:
        fit = keep_verdict(await means.look(service), previous, service.generation)
    spare = None
    if means.room is not None:
        own = {pod_name(each): each["spec"].get("nodeName", "") for each in seen}
        spare = partial(means.room, own=own)
    bound = refuses = None
    if means.claims is not None:
        bound = partial(means.claims.bound_to_one_node, service.namespace)
    if means.admission is not None:
        refuses = partial(means.admission.refuses, service.namespace, service.name)
    pinned = pinned_image(service, deployment, image)
    facts = read_facts(service, deployment, seen, fit=fit, now=now())
    problem = None
    for manifest in render(
        service,
        image=pinned,
        replicas=replicas,
        installation=installation,
        fetches=knows_fetch(service, deployment, choose_image(service, pinned)),
    ):
        kind = manifest["kind"]
        if kind in ASIDE:
            continue
        if kind == "Deployment":
            choice = await choose_deployment(
                service,
                deployment,
                manifest,
                image=pinned,
                default=image,
                facts=facts,
                previous=previous,
                cluster=Asks(spare, bound, refuses),
                now=now(),
            )
            problem = choice.problem
            if choice.manifest is None:
                continue
            further = {*extras, *wanted} & set(SOMETIMES)
            further |= routes.named | autoscalers.named
            manifest = with_extras(choice.manifest, further)
            if means.loads is not None and shrinks(deployment, manifest):
                await write_costs(kube, means.loads, seen)
        elif kind in SOMETIMES and kind not in read_extras(deployment):
            continue  # until the Deployment names it, and it cannot be forgotten
        try:
            applied = await apply(kube, service, manifest, objects[kind])
        except Refused as error:
            if problem is None or problem.reason == PROGRESSING:
                problem = error.problem
            continue
        if told := describe_foreign_change(objects[kind], applied):
            await _tell(kube, live, told, now())
        if kind == "Deployment":
            deployment = applied
    for kind in sorted(set(extras) - set(wanted)):
        try:
            await kube.delete(extras[kind])
        except KubeError as error:
            if error.code != 403:
                raise
            what = f"the {kind} {service.name}, which is not wanted any more, may not be deleted"
            problem = problem or Problem(WORKLOAD_READY, FORBIDDEN, f"{what}: {error}")
    routing = await routes.follow(deployment, means.watch_routes)
    autoscaling = await autoscalers.follow(deployment)
    for told in (*routes.told, *autoscalers.told):
        await _tell(kube, live, told, now())
    if means.loads is not None:
        means.loads.watch(live, seen)
    facts = read_facts(service, deployment, seen, problem=problem, fit=fit, now=now())
    fetching = {pod.name for pod in facts.current if pod.fetching}
    if fetching and means.loads is not None:
        asked = [each for each in seen if each["metadata"]["name"] in fetching]
        facts = with_download(facts, await means.loads.describe_downloads(asked))
    facts = replace(facts, routing=routing, autoscaling=autoscaling)
    impatient = bool(fetching) or is_impatient(deployment, facts)
    return decide_status(service, facts, previous, now()), impatient


async def _tell(kube: Kube, live: dict[str, Any], change: str, now: str) -> None:
    """Of somebody's change that was set back."""
    metadata = live["metadata"]
    log.info("%s/%s: %s", metadata["namespace"], metadata["name"], change)
    await post_event(kube, live, Event("Warning", FOREIGN_CHANGE, change), now)


def diff(previous: dict[str, Any], status: dict[str, Any]) -> dict[str, Any] | None:
    """The merge patch that makes `previous` `status`; None if they are equal."""
    change: dict[str, Any] = {key: None for key in previous if key not in status}
    for key, value in status.items():
        before = previous.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if (inner := diff(before, value)) is not None:
                change[key] = inner
        elif before != value:
            change[key] = value
    return change or None
