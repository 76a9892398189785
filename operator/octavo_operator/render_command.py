"""`octavo render`: the objects that a manifest becomes, as YAML."""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from octavo_operator import names
from octavo_operator.installation import Installation
from octavo_operator.local.shape import problems
from octavo_operator.manifests import UnreadableManifest, read_services
from octavo_operator.pod_defaults import PodDefaults, UnreadableDefaults, read_pod_defaults
from octavo_operator.render import render
from octavo_operator.spec import InvalidSpec
from octavo_operator.startup import checked_gpu_resource


@click.command("render")
@click.option(
    "-f",
    "--filename",
    "--file",
    "files",
    multiple=True,
    required=True,
    metavar="FILE",
    help="A manifest, a folder of them, or - for standard input. May be repeated.",
)
@click.option(
    "--image",
    default=names.DEFAULT_IMAGE,
    show_default=True,
    help="The server's image where the manifest names none.",
)
@click.option(
    "--pod-defaults",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The operator's file of pod defaults.",
)
@click.option(
    "--gpu-resource",
    default=names.GPU_RESOURCE,
    show_default=True,
    callback=checked_gpu_resource,
    help="What the operator's nodes call a GPU.",
)
@click.option(
    "--operator-namespace",
    default="",
    help="Where the operator runs, which a NetworkPolicy lets in. Default: outside the cluster.",
)
def command(
    files: tuple[str, ...],
    image: str,
    pod_defaults: Path | None,
    gpu_resource: str,
    operator_namespace: str,
) -> None:
    """Print the objects that the InferenceServices in FILE become.

    Nothing is sent anywhere. A wrong field is reported with its path, as the API server would.
    """
    try:
        services = read_services(files, gpu_resource)
        defaults = PodDefaults() if pod_defaults is None else read_pod_defaults(pod_defaults)
    except (UnreadableManifest, UnreadableDefaults) as error:
        raise click.ClickException(str(error)) from None
    if not services:
        raise click.ClickException(f"no {names.KIND} in {', '.join(files)}")
    installation = Installation(
        namespace=operator_namespace, gpu_resource=gpu_resource, defaults=defaults
    )
    objects = []
    for service in services:
        try:
            rendered = render(service, image=image, installation=installation)
        except InvalidSpec as error:
            raise click.ClickException(f"{names.KIND} {service.name}: {error}") from None
        for each in rendered:
            for path, problem in problems(each):
                where = f"{names.KIND} {service.name}: in the {each['kind']}"
                raise click.ClickException(f"{where}: {path}: {problem}")
        objects += rendered
    click.echo(yaml.safe_dump_all(objects, sort_keys=False, width=100), nl=False)
