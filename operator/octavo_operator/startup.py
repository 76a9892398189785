"""What is found out before the operator serves: one clear line instead of a watch that hangs."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from collections.abc import Callable

import click
from kubernetes.aio.client import Configuration

from octavo_operator import names
from octavo_operator.kube import Kube, KubeError, KubeUnreachable, NoCluster, load_configuration


def stopped_by_signals() -> asyncio.Event:
    """Set at SIGTERM or SIGINT, of the running loop."""
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    return stopped


async def find_cluster() -> Configuration:
    """ClickException where there is none."""
    try:
        return await load_configuration()
    except NoCluster as error:
        raise click.ClickException(str(error)) from None


def log_options(command: Callable[..., None]) -> Callable[..., None]:
    """`log_format` and `verbose`, for `configure_logs`."""
    for option in (
        click.option("--verbose", is_flag=True, help="Log what libraries do, too."),
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            help="JSON: one object a line, with the InferenceService that it is about.",
        ),
    ):
        command = option(command)
    return command


async def check_served(kube: Kube, namespaces: tuple[str, ...]) -> None:
    """ClickException if the API server is away, lacks the CRD or refuses to list its objects."""
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


def checked_gpu_resource(_: click.Context, __: click.Parameter, name: str) -> str:
    """BadParameter unless it is a resource that is seen to be a GPU, among others of a pod, too."""
    if re.fullmatch(r"[a-z0-9.-]+/[A-Za-z0-9._-]+", name) is None or not names.is_gpu(name):
        raise click.BadParameter(
            f"{name!r} is no GPU: write a resource such as nvidia.com/gpu, amd.com/gpu or "
            "nvidia.com/mig-1g.10gb"
        )
    return name


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
