"""What is found out before the operator serves: one clear line instead of a watch that hangs."""

from __future__ import annotations

import re
import socket

import click

from octavo_operator import names
from octavo_operator.kube import Kube, KubeError, KubeUnreachable


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
