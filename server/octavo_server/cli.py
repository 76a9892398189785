"""`octavo`: one command; each subcommand is imported only when it is used.

The operator's image has no torch, so nothing here, and nothing that listing the commands needs, may
import it: names and one-line helps stand in this file, the rest behind "module:attribute" strings.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NamedTuple

import click

from octavo_server.errors import OctavoError, StartupError


class Entry(NamedTuple):
    """Where a subcommand lives, what `octavo --help` says of it, the extra that it needs."""

    target: str  # "module:attribute"
    help: str
    extra: str


COMMANDS: dict[str, Entry] = {
    "serve": Entry(
        "octavo_server.api.serve:command", "Serve a model over the OpenAI-compatible API.", "server"
    ),
    "fetch": Entry(
        "octavo_server.fetch_command:command",
        "Fetch a model from the Hub into the servers' cache.",
        "server",
    ),
    "plan": Entry(
        "octavo_server.plan_command:command",
        "Say what a model needs of each GPU, and whether it fits.",
        "server",
    ),
    "compile-kernels": Entry(
        "octavo_server.rehearsal.command:command",
        "Compile a model's GPU kernels into a folder, without a GPU.",
        "server",
    ),
    "operator": Entry("octavo_operator.main:command", "Run the Kubernetes operator.", "operator"),
    "metrics-api": Entry(
        "octavo_operator.metrics_api.command:command",
        "Serve queue depth to autoscalers, as custom.metrics.k8s.io.",
        "operator",
    ),
    "render": Entry(
        "octavo_operator.render_command:command",
        "Print the objects that a manifest becomes.",
        "operator",
    ),
    "up": Entry(
        "octavo_operator.local.up:command",
        "Run a manifest's pods here, without a cluster.",
        "operator",
    ),
}


class LazyGroup(click.Group):
    """A click group whose commands come from `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else load(cmd_name, entry)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


def load(name: str, entry: Entry) -> click.Command:
    """Imports a subcommand; ClickException if this installation lacks a package that it needs."""
    module_name, _, attribute = entry.target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("octavo_"):
            raise
        raise click.ClickException(
            f"`octavo {name}` needs the package {error.name!r}, which is not installed: "
            f"pip install '.[{entry.extra}]' in a checkout"
        ) from error
    command: click.Command = getattr(module, attribute)
    return command


def version() -> str:
    """The installed distribution's version; with +source if run without installing."""
    try:
        return metadata.version("octavo")
    except metadata.PackageNotFoundError:
        return "0.1.0+source"


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(version(), prog_name="octavo")
def group() -> None:
    """Octavo serves language models, on a laptop or as InferenceServices of a cluster."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `octavo ARGV` and exits: 0, 1 (one line on stderr says why), 2 (usage), 130 (Ctrl-C)."""
    try:
        code = group.main(
            args=None if argv is None else list(argv), prog_name="octavo", standalone_mode=False
        )
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        # A subcommand may import its heavy parts late; a part of ours missing is a bug, not a hint.
        if error.name is None or error.name.startswith("octavo_"):
            raise
        click.echo(f"error: the package {error.name!r} is not installed", err=True)
        sys.exit(1)
    except OctavoError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, StartupError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader went away (`octavo render ... | head`): not an error worth a line.
        sys.stderr.close()
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
