"""`octavo render`: the objects that a manifest becomes, as YAML."""

from __future__ import annotations

import click
import yaml

from octavo_operator import names
from octavo_operator.local.shape import problems
from octavo_operator.manifests import UnreadableManifest, read_services
from octavo_operator.render import render
from octavo_operator.spec import InvalidSpec


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
def command(files: tuple[str, ...], image: str) -> None:
    """Print the objects that the InferenceServices in FILE become.

    Nothing is sent anywhere. A wrong field is reported with its path, as the API server would.
    """
    try:
        services = read_services(files)
    except UnreadableManifest as error:
        raise click.ClickException(str(error)) from None
    if not services:
        raise click.ClickException(f"no {names.KIND} in {', '.join(files)}")
    objects = []
    for service in services:
        try:
            rendered = render(service, image=image)
        except InvalidSpec as error:
            raise click.ClickException(f"{names.KIND} {service.name}: {error}") from None
        for each in rendered:
            for path, problem in problems(each):
                where = f"{names.KIND} {service.name}: in the {each['kind']}"
                raise click.ClickException(f"{where}: {path}: {problem}")
        objects += rendered
    click.echo(yaml.safe_dump_all(objects, sort_keys=False, width=100), nl=False)
