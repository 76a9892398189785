"""`octavo operator`: Kopf watches, the queue asks for passes, `reconcile` does them.

Registrations and settings only. Handlers enqueue and return: Kopf keeps no state here (no
finalizers, no annotations), so an operator that is down or gone holds nothing up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import click
import kopf

from octavo_operator import names
from octavo_operator.accelerators import Accelerators
from octavo_operator.admission import Admission
from octavo_operator.autoscaler_status import looks_of
from octavo_operator.autoscalers import Neighbours
from octavo_operator.claims import Claims
from octavo_operator.conditions import Condition
from octavo_operator.fit import Unread, decide_fit, read_stated
from octavo_operator.gpu_room import GpuRoom
from octavo_operator.health import Health
from octavo_operator.hub import NOT_ON_THE_HUB, HubConfigs
from octavo_operator.installation import Installation
from octavo_operator.kube import Kube, KubeError, KubeUnreachable, load_configuration
from octavo_operator.lease import LeadershipLost, Lease, lead, until
from octavo_operator.listening import listening
from octavo_operator.logs import configure_logs, logging_about
from octavo_operator.metrics import Metrics
from octavo_operator.pod_defaults import PodDefaults, UnreadableDefaults, read_pod_defaults
from octavo_operator.pod_http import PodHttp
from octavo_operator.pod_loads import PodLoads
from octavo_operator.queue import BATCH_SECONDS, Key, Queue, work
from octavo_operator.reconcile import Means, reconcile
from octavo_operator.registrations import Registrations
from octavo_operator.render.defaults import render_defaults
from octavo_operator.render.merge import merge
from octavo_operator.route_watch import RouteWatch
from octavo_operator.spec import InferenceService
from octavo_operator.startup import (
    check_port,
    check_served,
    checked_gpu_resource,
    find_cluster,
    log_options,
    stopped_by_signals,
)
from octavo_server.model_config import ModelConfig

WORKERS = 8
"""Passes at a time; each is a handful of requests to the API server."""

KOPF_SECONDS = 2.0
"""How long Kopf may take to end its watches: they write nothing."""

BUDGETS = ("policy", "v1", "poddisruptionbudgets")
POLICIES = ("networking.k8s.io", "v1", "networkpolicies")
AUTOSCALERS = ("autoscaling", "v2", "horizontalpodautoscalers")

LEADING, STANDING_BY = "leading", "standing by"

log = logging.getLogger(__name__)


def configure(settings: kopf.OperatorSettings) -> None:
    # No watching of CRDs and namespaces: it would need rights on both, and ours do not change.
    settings.scanning.disabled = True
    # Kopf's peering is no leader election: two equal peers both freeze.
    settings.peering.standalone = True
    settings.posting.enabled = False  # events are ours, one for each transition
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    # However long the API server is away (an upgrade of its only node, say): wait, do not give up.
    settings.networking.error_backoffs = (1, 1, 2, 3, 5, 8, 13, *[20] * 10_000)
    # Pods of others are never sent to us.
    for resource in ("pods", "services"):
        settings.watching.label_selectors["", "v1", resource] = names.SERVICE_LABEL
    settings.watching.label_selectors["apps", "v1", "deployments"] = names.SERVICE_LABEL
    for child in (BUDGETS, POLICIES, AUTOSCALERS):
        settings.watching.label_selectors[child] = names.SERVICE_LABEL


def register(
    registry: kopf.OperatorRegistry, queue: Queue, metrics: Metrics, loads: PodLoads
) -> None:
    """The events that ask for a pass."""
    seen: dict[Key, Any] = {}
    scaled: dict[Key, Any] = {}

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def service_changed(
        name: str, namespace: str | None, type: str | None, body: kopf.Body, **_: Any
    ) -> None:
        key = (namespace or "", name)
        if type == "DELETED":
            metrics.forgot_service(key)
            loads.forget(key)
            seen.pop(key, None)
            return
        metrics.saw_service(key, body.get("status") or {})
        before, now = seen.get(key), wishes_of(body)
        seen[key] = now
        # The status is ours, and written often; a start of the watch (type None) asks in any case.
        if type is None or before != now:
            queue.add(key, BATCH_SECONDS)

    async def child_changed(namespace: str | None, body: kopf.Body, **_: Any) -> None:
        queue.add((namespace or "", service_of(body)), BATCH_SECONDS)

    async def autoscaler_changed(
        namespace: str | None, type: str | None, body: kopf.Body, **_: Any
    ) -> None:
        key = (namespace or "", service_of(body))
        before, now = scaled.get(key), looks_of(body)
        scaled[key] = now
        if type == "DELETED":
            del scaled[key]
        if type in (None, "DELETED") or before != now:
            queue.add(key, BATCH_SECONDS)

    watched = {names.SERVICE_LABEL: kopf.PRESENT}
    kopf.on.event("apps", "v1", "deployments", labels=watched, registry=registry)(child_changed)
    kopf.on.event("", "v1", "services", labels=watched, registry=registry)(child_changed)
    for child in (BUDGETS, POLICIES):
        kopf.on.event(*child, labels=watched, registry=registry)(child_changed)
    kopf.on.event("", "v1", "pods", labels=watched, registry=registry)(child_changed)
    kopf.on.event(*AUTOSCALERS, labels=watched, registry=registry)(autoscaler_changed)


def wishes_of(service: Mapping[str, Any]) -> Any:
    """What of an InferenceService asks for another pass when it differs."""
    metadata = service["metadata"]
    fields = ("uid", "generation", "deletionTimestamp", "labels", "annotations")
    return {field: metadata.get(field) for field in fields}


def service_of(child: Mapping[str, Any]) -> str:
    """Its owner, whatever somebody made of its label; a pod, which has another, is by its label."""
    metadata = child["metadata"]
    for owner in metadata.get("ownerReferences") or ():
        if owner.get("kind") == names.KIND and owner.get("controller"):
            return str(owner["name"])
    return str(metadata["labels"][names.SERVICE_LABEL])


async def login(**_: Any) -> kopf.ConnectionInfo:
    """The credentials of `kube`, for Kopf's watches; asked again when they are refused."""
    configuration = await load_configuration()
    header = await configuration.get_api_key_with_prefix("BearerToken")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert or None,
        insecure=not configuration.verify_ssl,
        username=configuration.username or None,
        password=configuration.password or None,
        scheme="Bearer" if header else None,
        token=header.strip().rpartition(" ")[2] if header else None,
        certificate_path=configuration.cert_file or None,
        private_key_path=configuration.key_file or None,
        proxy_url=configuration.proxy or None,
    )


async def enqueue_all(
    kube: Kube, queue: Queue, metrics: Metrics, namespaces: tuple[str, ...], every: float
) -> None:
    """The safety net for lost events: each object gets a pass in each period, spread over it."""
    while True:
        await asyncio.sleep(every)
        for namespace in namespaces or (None,):
            where = namespace or "all namespaces"
            try:
                found = await kube.list(names.API_VERSION, names.KIND, namespace)
            except (KubeError, KubeUnreachable) as error:
                log.warning("periodic pass over %s skipped: %s", where, error)
                continue
            except Exception:
                log.exception("periodic pass over %s skipped", where)
                continue
            keys = [(each["metadata"]["namespace"], each["metadata"]["name"]) for each in found]
            metrics.listed_services(namespace, keys)
            for index, key in enumerate(keys):
                queue.add(key, every * index / len(keys))


@dataclass(frozen=True, slots=True)
class Options:
    """What `octavo operator` was told."""

    namespaces: tuple[str, ...]
    image: str
    liveness_port: int
    metrics_port: int
    resync_seconds: float
    lease_namespace: str
    lease_name: str
    gpu_resource: str = names.GPU_RESOURCE
    defaults: PodDefaults = field(default_factory=PodDefaults)
    check: bool = False


async def run(options: Options) -> None:
    """Until SIGTERM or SIGINT. ClickException if the cluster is not there or lacks the CRD, or
    where another operator took the lead.
    """
    stopped = stopped_by_signals()  # on standby; Kopf puts its own instead
    configuration = await find_cluster()
    async with contextlib.AsyncExitStack() as stack:
        queue = Queue()
        metrics, health = Metrics(queue), Health(queue)
        kube = await stack.enter_async_context(Kube(configuration, metrics.saw_request))
        http = await stack.enter_async_context(PodHttp())
        await until(stopped, check_served(kube, options.namespaces))
        if stopped.is_set():
            return
        if options.check:
            click.echo(f"{configuration.host} serves {names.PLURAL}")
            return
        check_port(options.liveness_port, "--liveness-port")
        check_port(options.metrics_port, "--metrics-port")
        probes = {"/healthz": health.alive, "/readyz": health.ready}
        await stack.enter_async_context(listening(options.liveness_port, probes))
        await stack.enter_async_context(
            listening(options.metrics_port, {"/metrics": metrics.answer})
        )

        def doing(what: str) -> None:
            health.doing = what
            metrics.leads(what == LEADING)

        async def serving() -> None:
            doing(LEADING)
            where = ", ".join(options.namespaces) or "all namespaces"
            log.info("serving %s of %s; default image %s", where, configuration.host, options.image)
            await serve(kube, http, queue, metrics, options)

        if not options.lease_namespace:
            await until(stopped, serving())
            return
        lease = Lease(kube, options.lease_namespace, options.lease_name, identity())
        try:
            await lead(lease, serving, stopped, lambda: doing(STANDING_BY))
        except LeadershipLost as error:
            raise click.ClickException(f"stopped: {error}") from None


async def serve(
    kube: Kube, http: PodHttp, queue: Queue, metrics: Metrics, options: Options
) -> None:
    """Watches and passes, until Kopf ends; cancelled, no pass goes on."""
    registry, settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
    configure(settings)
    loads = PodLoads(kube, http)
    register(registry, queue, metrics, loads)
    kopf.on.login(registry=registry)(login)

    installation = Installation(
        namespace=os.environ.get("POD_NAMESPACE", ""),
        gpu_resource=options.gpu_resource,
        defaults=options.defaults,
    )
    configs, room = HubConfigs(queue.add), GpuRoom(kube)
    accelerators = Accelerators(kube, gpu_resource=options.gpu_resource)

    async def look(service: InferenceService) -> Condition:
        if not service.wants_gpu:
            return decide_fit(service, None, ())
        asked = service.spec.model
        model: ModelConfig | Unread | None = NOT_ON_THE_HUB
        if asked.config is not None:
            model = read_stated(asked.config)
        # An address of the manifest's is not the operator's to ask: it may be anything in reach.
        elif asked.endpoint is None:
            model = configs.get(asked.source, (service.namespace, service.name))
        defaults = render_defaults(options.defaults, service)["spec"]
        pod_spec = merge(defaults, service.spec.pod_template.get("spec") or {})
        return decide_fit(service, model, await accelerators.mebibytes(pod_spec))

    async def do(key: Key) -> None:
        with metrics.passing(), logging_about(key):
            look_again_seconds = await reconcile(
                kube, *key, image=options.image, means=means, installation=installation
            )
        if look_again_seconds is not None:
            queue.add(key, look_again_seconds)

    def route_changed(route: Mapping[str, Any]) -> None:
        queue.add((route["metadata"]["namespace"], service_of(route)), BATCH_SECONDS)

    routes = RouteWatch(kube, options.namespaces, route_changed)
    means = Means(
        look=look,
        room=room.look,
        neighbours=Neighbours(kube),
        claims=Claims(kube),
        admission=Admission(kube),
        loads=loads,
        watch_routes=routes.start,
    )
    tasks = [asyncio.ensure_future(work(queue, do)) for _ in range(WORKERS)]
    tasks.append(asyncio.ensure_future(loads.run()))
    tasks.append(asyncio.ensure_future(Registrations(kube).run()))
    every = options.resync_seconds
    tasks.append(
        asyncio.ensure_future(enqueue_all(kube, queue, metrics, options.namespaces, every))
    )
    watches = asyncio.ensure_future(
        kopf.operator(
            registry=registry,
            settings=settings,
            standalone=True,
            # Else Kopf asks for the user's name, which a numeric user of an image need not have.
            identity=cast(Any, identity()),
            clusterwide=not options.namespaces,
            namespaces=options.namespaces,
        )
    )
    try:
        # Not `await watches`: cancelled, that would first wait for Kopf's end.
        await asyncio.wait({watches})
        await watches
    except Exception as error:
        # A watch ended for good: the CRD or a right was removed. The Deployment starts the
        # operator again, until what is missing is back.
        await check_served(kube, options.namespaces)
        raise click.ClickException(f"cannot watch the cluster any more: {error}") from error
    finally:
        tasks += routes.tasks
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        watches.cancel()
        await asyncio.wait({watches}, timeout=KOPF_SECONDS)


def identity() -> str:
    """In a cluster the pod's name, so that a container that was restarted leads at once again."""
    return os.environ.get("POD_NAME") or f"{socket.gethostname()}-{secrets.token_hex(4)}"


@click.command("operator")
@click.option(
    "-n",
    "--namespace",
    "namespaces",
    multiple=True,
    help="Serve only this namespace; may be repeated. Default: all of them.",
)
@click.option(
    "--image",
    default=names.DEFAULT_IMAGE,
    show_default=True,
    envvar="OCTAVO_IMAGE",
    help="The server's image where a manifest names none.",
)
@click.option(
    "--gpu-resource",
    default=names.GPU_RESOURCE,
    show_default=True,
    callback=checked_gpu_resource,
    help="What nodes call a GPU: another vendor's, or a MIG profile's.",
)
@click.option(
    "--pod-defaults",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What all pods of services get where their manifest says nothing else, as YAML.",
)
@click.option(
    "--liveness-port",
    default=8080,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Where /healthz answers; 0 for none.",
)
@click.option(
    "--metrics-port",
    default=0,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Where /metrics answers, for Prometheus; 0 for none.",
)
@click.option(
    "--resync-seconds",
    default=300.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Each object gets a pass at least this often, events or not.",
)
@click.option(
    "--lease-namespace",
    default="",
    help="Where the Lease is by which one of several operators leads. Default: it is alone.",
)
@click.option(
    "--lease-name",
    default=names.FIELD_MANAGER + "-operator",
    show_default=True,
    help="Operators that share it take turns.",
)
@click.option(
    "--check", is_flag=True, help="Say whether the cluster has what the operator needs, and end."
)
@log_options
def command(log_format: str, verbose: bool, pod_defaults: Path | None, **options: Any) -> None:
    """Run the operator against the cluster of $KUBECONFIG, or of the pod it runs in."""
    configure_logs(as_json=log_format == "json", verbose=verbose)
    try:
        defaults = PodDefaults() if pod_defaults is None else read_pod_defaults(pod_defaults)
    except UnreadableDefaults as error:
        raise click.ClickException(f"--pod-defaults: {error}") from None
    asyncio.run(run(Options(defaults=defaults, **options)))
