"""`octavo operator`: Kopf watches, the queue asks for passes, `reconcile` does them.

Registrations and settings only. Handlers enqueue and return: Kopf keeps no state here (no
finalizers, no annotations), so an operator that is down or gone holds nothing up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import click
import kopf

from octavo_operator import names
from octavo_operator.kube import Kube, KubeError, KubeUnreachable, NoCluster, load_configuration
from octavo_operator.metrics import Metrics
from octavo_operator.queue import BATCH_SECONDS, Key, Queue, work
from octavo_operator.reconcile import reconcile

WORKERS = 8
"""Passes at a time; each is a handful of requests to the API server."""

STALLED_SECONDS = 300.0
"""A key that waits this long for a worker means that all workers hang: the probe then fails."""

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
    settings.watching.label_selectors["policy", "v1", "poddisruptionbudgets"] = names.SERVICE_LABEL


def register(registry: kopf.OperatorRegistry, queue: Queue, metrics: Metrics) -> None:
    """The events that ask for a pass, and the probe that watches the queue."""

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def service_changed(
        name: str, namespace: str | None, type: str | None, status: kopf.Status, **_: Any
    ) -> None:
        key = (namespace or "", name)
        if type == "DELETED":
            metrics.forgot_service(key)
        else:
            metrics.saw_service(key, status)
        queue.add(key, BATCH_SECONDS)

    async def child_changed(namespace: str | None, labels: kopf.Labels, **_: Any) -> None:
        queue.add((namespace or "", labels[names.SERVICE_LABEL]), BATCH_SECONDS)

    watched = {names.SERVICE_LABEL: kopf.PRESENT}
    kopf.on.event("apps", "v1", "deployments", labels=watched, registry=registry)(child_changed)
    kopf.on.event("", "v1", "services", labels=watched, registry=registry)(child_changed)
    budgets = ("policy", "v1", "poddisruptionbudgets")
    kopf.on.event(*budgets, labels=watched, registry=registry)(child_changed)
    kopf.on.event("", "v1", "pods", labels=watched, registry=registry)(child_changed)

    @kopf.on.probe(id="queue", registry=registry)
    async def queue_moves(**_: Any) -> str:
        if (overdue := queue.overdue_seconds()) > STALLED_SECONDS:
            raise RuntimeError(f"no pass for {overdue:.0f} s")
        return f"{len(queue)} waiting"


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


async def enqueue_all(kube: Kube, queue: Queue, namespaces: tuple[str, ...], every: float) -> None:
    """The safety net for lost events: each object gets a pass in each period, spread over it."""
    while True:
        await asyncio.sleep(every)
        try:
            for namespace in namespaces or (None,):
                found = await kube.list(names.API_VERSION, names.KIND, namespace)
                for index, each in enumerate(found):
                    metadata = each["metadata"]
                    delay = every / 2 * index / len(found)
                    queue.add((metadata["namespace"], metadata["name"]), delay)
        except (KubeError, KubeUnreachable) as error:
            log.warning("periodic pass skipped: %s", error)


async def run(
    *,
    namespaces: tuple[str, ...],
    image: str,
    liveness_port: int,
    metrics_port: int,
    resync_seconds: float,
) -> None:
    """Until SIGTERM or SIGINT. ClickException if the cluster is not there or lacks the CRD."""
    try:
        configuration = await load_configuration()
    except NoCluster as error:
        raise click.ClickException(str(error)) from None
    async with contextlib.AsyncExitStack() as stack:
        queue = Queue()
        metrics = Metrics(queue)
        kube = await stack.enter_async_context(Kube(configuration, metrics.saw_request))
        await check_served(kube, namespaces)
        check_port(liveness_port, "--liveness-port")
        check_port(metrics_port, "--metrics-port")
        await stack.enter_async_context(metrics.served(metrics_port))
        where = ", ".join(namespaces) or "all namespaces"
        log.info("serving %s of %s; default image %s", where, configuration.host, image)
        registry = kopf.OperatorRegistry()
        settings = kopf.OperatorSettings()
        configure(settings)
        register(registry, queue, metrics)
        kopf.on.login(registry=registry)(login)

        async def do(key: Key) -> None:
            with metrics.passing():
                look_again_seconds = await reconcile(kube, *key, image=image)
            if look_again_seconds is not None:
                queue.add(key, look_again_seconds)

        background: list[Callable[[], Awaitable[None]]] = [
            lambda: work(queue, do) for _ in range(WORKERS)
        ]
        background.append(lambda: enqueue_all(kube, queue, namespaces, resync_seconds))
        tasks = [asyncio.ensure_future(each()) for each in background]
        try:
            await kopf.operator(
                registry=registry,
                settings=settings,
                standalone=True,
                clusterwide=not namespaces,
                namespaces=namespaces,
                liveness_endpoint=f"http://0.0.0.0:{liveness_port}/healthz"
                if liveness_port
                else None,
            )
        except Exception as error:
            # A watch ended for good: the CRD or a right was removed. The Deployment starts the
            # operator again, until what is missing is back.
            await check_served(kube, namespaces)
            raise click.ClickException(f"cannot watch the cluster any more: {error}") from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def check_served(kube: Kube, namespaces: tuple[str, ...]) -> None:
    """One clear line instead of a watch that never starts."""
    try:
        await kube.list(names.API_VERSION, names.KIND, namespaces[0] if namespaces else None)
    except KubeError as error:
        if error.code == 404:
            raise click.ClickException(
                f"the cluster does not know {names.KIND}: apply crds/inferenceservice.yaml first"
            ) from None
        raise click.ClickException(f"cannot list {names.PLURAL}: {error}") from None
    except KubeUnreachable as error:
        raise click.ClickException(str(error)) from None


def check_port(port: int, flag: str) -> None:
    """ClickException if nothing could listen there; 0 means that nothing is to."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            raise click.ClickException(
                f"cannot listen on port {port} ({error.strerror}): pass another {flag}"
            ) from None


def one_line(record: logging.LogRecord) -> bool:
    """A filter: Kopf's errors without their tracebacks, whose last line the message repeats."""
    if record.name.partition(".")[0] == "kopf":
        record.exc_info = None
    return True


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
@click.option("--verbose", is_flag=True, help="Log what Kopf does, too.")
def command(
    namespaces: tuple[str, ...],
    image: str,
    liveness_port: int,
    metrics_port: int,
    resync_seconds: float,
    verbose: bool,
) -> None:
    """Run the operator against the cluster of $KUBECONFIG, or of the pod it runs in."""
    kopf.configure(verbose=verbose)
    if not verbose:
        for noisy in ("kopf", "aiohttp.access"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        for handler in logging.getLogger().handlers:
            handler.addFilter(one_line)
    asyncio.run(
        run(
            namespaces=namespaces,
            image=image,
            liveness_port=liveness_port,
            metrics_port=metrics_port,
            resync_seconds=resync_seconds,
        )
    )
