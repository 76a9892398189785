"""`octavo up -f FILE`: the pods of a manifest as local processes, without a cluster."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from octavo_operator.local.console import (
    UNMOUNTED,
    UNTYPED,
    Console,
    Failure,
    LogFollower,
    explain_failure,
    with_remedy,
)
from octavo_operator.local.pod import PodRunner
from octavo_operator.local.resolver import Objects
from octavo_operator.local.sandbox import LocalSandbox, Manifest
from octavo_operator.local.supported import unapplied_fields
from octavo_operator.local.workloads import (
    Workloads,
    base_path,
    image_model,
    missing_volumes,
    plan,
    serving_port,
)
from octavo_operator.manifests import UnreadableManifest, read_documents

LOG_PERIOD_SECONDS = 0.1
KILLED = 130  # the exit code after a second Ctrl-C, as shells have it


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    host: str
    port: int | None
    volumes: dict[str, Path]
    show_logs: bool
    exit_on_failure: bool
    backoff_seconds: float


class Up:
    """Runs the pods until they are all over, or a signal asks to stop."""

    def __init__(self, workloads: Workloads, options: Options, log_folder: Path) -> None:
        self._options = options
        self._sandbox = LocalSandbox(options.volumes, host=options.host, first_port=options.port)
        self._names = [pod["metadata"]["name"] for pod in workloads.pods]
        self._told: dict[str, Failure] = {}
        self._stops = 0
        self._code = 0
        self._runners: list[PodRunner] = []
        self._console = Console(self._names, self._print)
        self._logs = {name: LogFollower(log_folder / name) for name in self._names}
        self._tasks: set[asyncio.Task[None]] = set()
        resolver = Objects(workloads.secrets, workloads.config_maps)
        self._runners = [
            PodRunner(
                pod,
                self._sandbox,
                resolve=resolver,
                on_status=partial(self._on_status, pod),
                on_event=partial(self._on_event, name),
                log_folder=log_folder / name,
                backoff_seconds=options.backoff_seconds,
            )
            for name, pod in zip(self._names, workloads.pods, strict=True)
        ]

    async def run(self) -> int:
        """The exit code: 0 after a stop that was asked for, 1 if pods ended by themselves."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        following = asyncio.create_task(self._follow_logs())
        if self._stops:  # nobody reads even the first line
            self._stop(None)
        try:
            async with asyncio.TaskGroup() as group:
                for runner in self._runners:
                    group.create_task(runner.run())
        finally:
            following.cancel()
            self._print_logs(final=True)
        if not self._stops:
            self._code = 1  # refused, or over by their restart policy
        return self._code

    def _on_signal(self) -> None:
        self._stops += 1
        if self._stops == 1:
            self._console.stopping()
        else:
            self._code = self._code or KILLED
        self._stop(None if self._stops == 1 else 0)

    def _stop(self, grace_seconds: float | None) -> None:
        for runner in self._runners:
            task = asyncio.create_task(self._stop_one(runner, grace_seconds))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _stop_one(self, runner: PodRunner, grace_seconds: float | None) -> None:
        """Nobody awaits it, so a failure is told here, and the pod killed."""
        try:
            await runner.stop(grace_seconds)
        except Exception as error:
            self._print(f"error: cannot stop gracefully: {type(error).__name__}: {error}", err=True)
            self._code = 1
            await runner.stop(0)

    def _print(self, line: str, *, err: bool = False) -> None:
        """If the reader is gone (`octavo up | head`), the pods are stopped."""
        try:
            click.echo(line, err=err)
        except BrokenPipeError:
            # Python would fail once more when it flushes the stream at its exit.
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), (sys.stderr if err else sys.stdout).fileno())
            self._stops, self._code = max(self._stops, 1), 1
            self._stop(None)

    def _on_status(self, pod: Manifest, status: Manifest) -> None:
        name = pod["metadata"]["name"]
        failure = explain_failure(status)
        if failure is not None and self._told.get(name) != failure and not self._stops:
            self._told[name] = failure
            self._print_logs()
            self._tell_failure(name, failure)
        self._console.status(name, status, self._url(pod))

    def _on_event(self, name: str, _kind: str, reason: str, message: str) -> None:
        self._console.event(name, reason, message)
        if reason == UNMOUNTED:
            failure = Failure("", reason, with_remedy(message))
            if self._told.get(name) != failure and not self._stops:
                self._told[name] = failure
                self._tell_failure(name, failure)

    def _tell_failure(self, name: str, failure: Failure) -> None:
        self._print(f"error: {name}: {failure.reason}: {failure.sentence}", err=True)
        if self._options.exit_on_failure and failure.reason != UNTYPED:
            self._stops = 1
            self._code = 1
            self._stop(None)

    def _url(self, pod: Manifest) -> str:
        number = serving_port(pod)
        if number is None:
            return ""
        host = "127.0.0.1" if self._options.host == "0.0.0.0" else self._options.host
        return f"http://{host}:{self._sandbox.port(pod, number)}{base_path(pod)}"

    async def _follow_logs(self) -> None:
        while True:
            self._print_logs()
            await asyncio.sleep(LOG_PERIOD_SECONDS)

    def _print_logs(self, *, final: bool = False) -> None:
        if self._options.show_logs:
            for name, follower in self._logs.items():
                for line in follower.lines(final=final):
                    self._console.log(name, line)


def parse_volume(text: str) -> tuple[str, Path]:
    """CONTAINER_PATH=DIR; raises click.BadParameter."""
    path, equals, folder = text.partition("=")
    if not (equals and path.startswith("/") and folder):
        raise click.BadParameter(f"{text!r} is not CONTAINER_PATH=DIR", param_hint="--volume")
    source = Path(folder).expanduser().absolute()
    if not source.exists():
        raise click.BadParameter(f"{source} does not exist", param_hint="--volume")
    return path, source


def read_workloads(files: Sequence[str], replicas: int | None) -> Workloads:
    """Raises click.ClickException with one line that says what is wrong."""
    try:
        workloads = plan(read_documents(files), replicas)
    except UnreadableManifest as error:
        raise click.ClickException(str(error)) from None
    if not workloads.pods:
        raise click.ClickException(
            "nothing to run: no InferenceService or Deployment with replicas (a suspended one has "
            "none)"
        )
    return workloads


def refuse_unwritable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        message = f"cannot write to --log-folder {folder}: {error.strerror}"
        raise click.ClickException(message) from None


def refuse_taken_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = f"cannot listen on {host}:{port}: {error.strerror}"
            raise click.ClickException(message) from None


@click.command("up")
@click.option(
    "-f",
    "--filename",
    "--file",
    "files",
    multiple=True,
    required=True,
    metavar="FILE",
    help="A manifest, a folder of them, or - for standard input; may be repeated. "
    "InferenceServices, Deployments, and the Secrets and ConfigMaps they use.",
)
@click.option(
    "--volume",
    "volumes",
    multiple=True,
    metavar="CONTAINER_PATH=DIR",
    help="What the pods see at CONTAINER_PATH: an image's content, a claim. May be repeated.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Of the first pod; the next ones follow. Default: the manifest's, or a free one.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--replicas", type=click.IntRange(1), help="Pods per service, whatever it says.")
@click.option("--logs/--no-logs", "show_logs", default=True, help="Print the containers' output.")
@click.option(
    "--log-folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where logs are kept; those of a run before are replaced. Default: a temporary folder, "
    "removed at the end.",
)
@click.option(
    "--exit-on-failure",
    is_flag=True,
    help="Exit 1 when a server says why it cannot start (ModelNotFound, ...).",
)
@click.option("--backoff-seconds", type=float, default=10.0, hidden=True)
@click.pass_context
def command(
    context: click.Context, files: tuple[str, ...], volumes: tuple[str, ...], port: int | None,
    host: str, replicas: int | None, show_logs: bool, log_folder: Path | None,
    exit_on_failure: bool, backoff_seconds: float,
) -> None:  # fmt: skip
    """Run a manifest's pods as local processes: same rendering as in a cluster, no cluster.

    Pods restart with back-off, as in a cluster. Ctrl-C stops them gracefully, twice kills them.
    """
    workloads = read_workloads(files, replicas)
    options = Options(
        host=host,
        port=port,
        volumes=dict(parse_volume(text) for text in volumes),
        show_logs=show_logs,
        exit_on_failure=exit_on_failure,
        backoff_seconds=backoff_seconds,
    )
    if port is not None:
        refuse_taken_port(host, port)
    if log_folder is not None:
        refuse_unwritable(log_folder)
    sandbox = LocalSandbox(options.volumes)
    for pod in workloads.pods:
        for path in missing_volumes(pod, sandbox):
            name = pod["metadata"]["name"]
            message = f"{name}: say which folder stands for {path}: --volume {path}=DIR"
            raise click.ClickException(message)
        model = image_model(pod, sandbox)
        if model is not None and not model.exists():
            folder = model.parent
            raise click.ClickException(
                f"{pod['metadata']['name']}: there is no {model} on this machine; say which folder "
                f"stands for {folder}: --volume {folder}=DIR"
            )
    if workloads.ignored:
        click.echo(f"note: left aside: {', '.join(workloads.ignored)}")
    unapplied = sorted({field for pod in workloads.pods for field in unapplied_fields(pod)})
    if unapplied:
        click.echo(f"note: without effect on local processes: {', '.join(unapplied)}")
    with tempfile.TemporaryDirectory(prefix="octavo-up-") as temporary:
        folder = log_folder or Path(temporary)
        context.exit(asyncio.run(Up(workloads, options, folder).run()))
