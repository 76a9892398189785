"""`octavo metrics-api`: watches, scraping, certificates and the server, until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from dataclasses import dataclass
from typing import Any

import click
from aiohttp import web

from octavo_operator.kube import Kube, KubeError, KubeUnreachable
from octavo_operator.lease import until
from octavo_operator.listening import listening
from octavo_operator.logs import configure_logs
from octavo_operator.metrics_api.access import Access
from octavo_operator.metrics_api.certificate_store import CertificateStore
from octavo_operator.metrics_api.fleet import Fleet
from octavo_operator.metrics_api.front_proxy import (
    CONFIG_MAP,
    NAMESPACE,
    NoFrontProxy,
    read_front_proxy,
)
from octavo_operator.metrics_api.registration import Place, Registration
from octavo_operator.metrics_api.scraper import Scraper
from octavo_operator.metrics_api.server import Server
from octavo_operator.metrics_api.tls import Tls
from octavo_operator.metrics_api.watches import Watches
from octavo_operator.pod_http import PodHttp
from octavo_operator.startup import (
    check_port,
    check_served,
    find_cluster,
    log_options,
    stopped_by_signals,
)

LOOK_SECONDS = 10.0
"""Between two looks at the Secret, the front proxy's CA and the APIServices."""

STALLED_SECONDS = 60.0

CONNECTIONS = 256
"""To pods at a time: each is asked once a second, and may take two to fail."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    namespaces: tuple[str, ...]
    place: Place
    secret: str
    port: int
    liveness_port: int


class MetricsApi:
    """All parts of one replica."""

    def __init__(self, kube: Kube, http: PodHttp, options: Options) -> None:
        self._kube, self._options = kube, options
        self.fleet, self.tls = Fleet(), Tls()
        self.watches = Watches(kube, self.fleet, options.namespaces)
        self.scraper = Scraper(self.fleet, http)
        self.server = Server(self.fleet, Access(kube), lambda: self.watches.listed)
        self._store = CertificateStore(
            kube, options.place.namespace, options.secret, options.place.host_names
        )
        self._registration = Registration(kube, options.place)
        self._told = ""

    async def look(self) -> None:
        """At what changes seldom. What it was last time stays where it cannot be seen."""
        try:
            issued = await self._store.look()
            live = await self._kube.get("v1", "ConfigMap", NAMESPACE, CONFIG_MAP)
            proxy = read_front_proxy(live)
            self.tls.use(issued, proxy.authority)
            self.server.proxy = proxy
            if self.watches.listed:
                await self._registration.look(issued.authorities)
            self._told = ""
        except NoFrontProxy as error:
            self.server.proxy = None
            self._warn(str(error))
        except (KubeError, KubeUnreachable, ssl.SSLError, ValueError) as error:
            self._warn(f"not as it should be: {error}")

    def _warn(self, text: str) -> None:
        """Once, as long as it stays the same."""
        if text != self._told:
            log.warning(text)
        self._told = text

    async def keep_looking(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("looking at certificates and APIServices failed")
            ready = self.watches.listed and self.server.proxy is not None
            await asyncio.sleep(LOOK_SECONDS if ready else 1.0)

    async def alive(self, _: web.Request) -> web.Response:
        late = time.monotonic() - self.scraper.round_at
        return web.Response(
            status=503 if late > STALLED_SECONDS else 200, text=f"{late:.1f} s since a round\n"
        )

    async def ready(self, _: web.Request) -> web.Response:
        """200 once it could answer for every service."""
        if not self.watches.listed:
            return web.Response(status=503, text="services and pods are not listed yet\n")
        if self.server.proxy is None:
            return web.Response(status=503, text="the front proxy is not known yet\n")
        return web.Response(text=f"{len(self.fleet.services)} services\n")


async def run(options: Options) -> None:
    """Until SIGTERM or SIGINT. ClickException if the cluster is not there or lacks the CRD."""
    stopped = stopped_by_signals()
    configuration = await find_cluster()
    async with contextlib.AsyncExitStack() as stack:
        kube = await stack.enter_async_context(Kube(configuration))
        http = await stack.enter_async_context(PodHttp(CONNECTIONS))
        await until(stopped, check_served(kube, options.namespaces))
        if stopped.is_set():
            return
        check_port(options.port, "--port")
        check_port(options.liveness_port, "--liveness-port")
        api = MetricsApi(kube, http, options)
        probes = {"/healthz": api.alive, "/readyz": api.ready}
        await stack.enter_async_context(listening(options.liveness_port, probes))
        runner = web.AppRunner(api.server.app(), access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "0.0.0.0", options.port, ssl_context=api.tls.context)
        await site.start()
        log.info("custom.metrics.k8s.io on port %s, from %s", options.port, configuration.host)
        await until(stopped, _serve(api))


async def _serve(api: MetricsApi) -> None:
    """None of the three ends by itself: a defect of one ends the process, which is begun again."""
    async with asyncio.TaskGroup() as group:
        group.create_task(api.watches.run())
        group.create_task(api.scraper.run())
        group.create_task(api.keep_looking())


@click.command("metrics-api")
@click.option(
    "-n",
    "--namespace",
    "namespaces",
    multiple=True,
    help="Serve only services of this namespace; may be repeated. Default: all of them.",
)
@click.option(
    "--own-namespace",
    envvar="POD_NAMESPACE",
    required=True,
    help="Where it runs itself: of its Service and of the Secret with its certificate.",
)
@click.option(
    "--service",
    default="octavo-metrics-api",
    show_default=True,
    help="The Service that leads to it, on port 443.",
)
@click.option(
    "--cluster-role",
    default="",
    help="Its ClusterRole: when that is deleted, its APIServices are, too.",
)
@click.option(
    "--secret",
    default="octavo-metrics-api",
    show_default=True,
    help="The Secret of its CA and certificate, which it makes and renews.",
)
@click.option(
    "--port",
    default=8443,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Where it answers the API server, over TLS.",
)
@click.option(
    "--liveness-port",
    default=8080,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Where /healthz and /readyz answer; 0 for none.",
)
@log_options
def command(
    log_format: str,
    verbose: bool,
    own_namespace: str,
    service: str,
    cluster_role: str,
    **options: Any,
) -> None:
    """Serve queue depth to HorizontalPodAutoscalers, as custom.metrics.k8s.io."""
    configure_logs(as_json=log_format == "json", verbose=verbose)
    place = Place(own_namespace, service, cluster_role=cluster_role)
    asyncio.run(run(Options(place=place, **options)))
