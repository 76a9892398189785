"""`octavo serve MODEL`: flags to settings, an open socket, one clear line if it cannot start."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import socket
import subprocess
from typing import Any

import click

from octavo_server import log_lines
from octavo_server.api.chat_template import read_chat_template
from octavo_server.api.cors import cors_of
from octavo_server.api.keys import VARIABLE, read_keys
from octavo_server.api.settings import (
    MAX_NUM_QUEUED_REQS,
    MAX_NUM_QUEUED_TOKENS,
    MIB,
    ServeSettings,
)
from octavo_server.api.signals import EarlySignals
from octavo_server.api.sizes import Size
from octavo_server.api.termination import TellingCommand, write_termination
from octavo_server.api.tls import make_context, tls_files
from octavo_server.api.without_torch import hide_torch
from octavo_server.config import BLOCK_SIZES, EngineConfig
from octavo_server.engine.early import spawn
from octavo_server.errors import InvalidSettings, StartupError
from octavo_server.llm_arguments import check_ranges

_BACKLOG = 2048  # connections that wait while the loop is busy


@click.command(
    name="serve",
    cls=TellingCommand,
    help="Serve MODEL: a folder, a .gguf file or a Hub id (ORG/NAME).",
)
@click.argument("model_tag", metavar="MODEL", required=False)
@click.option("--model", help="The same as MODEL.")
@click.option("--host", default="0.0.0.0", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--served-model-name",
    multiple=True,
    help="Name in requests and answers; repeat it or separate by commas (default: MODEL).",
)
@click.option("--tokenizer", help="Folder or Hub id of another tokenizer.")
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto"
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--max-model-len", type=int, help="Context length; -1: the longest that fits.")
@click.option("--max-num-seqs", type=click.IntRange(1), default=512, show_default=True)
@click.option("--max-num-batched-tokens", type=click.IntRange(1), help="Tokens of one step.")
@click.option("--block-size", type=click.Choice(BLOCK_SIZES), default=16, show_default=True)
@click.option("--gpu-memory-utilization", type=float, default=0.9, show_default=True)
@click.option("--kv-cache-memory-bytes", type=Size(), help="For example 1GiB.")
@click.option("--num-gpu-blocks-override", type=click.IntRange(2))
@click.option("--tensor-parallel-size", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--collective-timeout",
    type=click.FloatRange(1),
    help="Seconds after which a step of several ranks that does not end has failed: the server "
    "exits. Default: 60 on GPUs, 600 on CPUs.",
)
@click.option(
    "--load-format",
    type=click.Choice(["auto", "safetensors", "gguf", "dummy"]),
    default="auto",
)
@click.option("--download-dir", help="Where the Hub's files are kept.")
@click.option(
    "--generation-config",
    default="auto",
    show_default=True,
    help="Defaults of sampling: auto (the model's), vllm (neutral), or a folder.",
)
@click.option("--chat-template", help="A file with a Jinja template, or the template itself.")
@click.option("--enable-prefix-caching/--no-enable-prefix-caching", default=True)
@click.option("--enforce-eager/--no-enforce-eager", default=False, help="Do without CUDA graphs.")
@click.option(
    "--async-scheduling/--no-async-scheduling",
    default=None,
    help="Launch a step before the last one's tokens are known. Default: on a GPU.",
)
@click.option("--trust-remote-code/--no-trust-remote-code", default=False)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--max-logprobs", type=click.IntRange(0), default=20, show_default=True)
@click.option("--max-body-bytes", type=Size(), default=32 * MIB, help="Default: 32MiB.")
@click.option(
    "--max-num-queued-reqs",
    type=click.IntRange(0),
    default=MAX_NUM_QUEUED_REQS,
    show_default=True,
    help="Answers (n for each prompt) that may wait to be started; more are refused, 503. 0: any.",
)
@click.option(
    "--max-num-queued-tokens",
    type=click.IntRange(0),
    default=MAX_NUM_QUEUED_TOKENS,
    show_default=True,
    help="The same in prompt tokens.",
)
@click.option(
    "--max-reqs-per-key",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Answers that one API key may have running or waiting; more are refused, 429. 0: any.",
)
@click.option(
    "--scheduling-policy",
    type=click.Choice(["fcfs", "priority"]),
    default="fcfs",
    show_default=True,
    help="First come, first served, or first by the priority that requests may say.",
)
@click.option(
    "--shutdown-timeout",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds that running requests get after SIGTERM.",
)
@click.option(
    "--step-timeout",
    type=click.FloatRange(1),
    default=300.0,
    show_default=True,
    help="Seconds after which a running step counts as a hang (/health).",
)
@click.option("--metrics-prefix", default="vllm:", show_default=True)
@click.option(
    "--uvicorn-log-level",
    type=click.Choice(["critical", "error", "warning", "info", "debug", "trace"]),
    default="warning",
    show_default=True,
    help="From info on, each request is a line.",
)
@click.option(
    "--api-key",
    multiple=True,
    help="A key that clients must send one of; repeat it for more (also $OCTAVO_API_KEY, one a"
    " line).",
)
@click.option("--api-key-file", multiple=True, help="A file of keys, one a line.")
@click.option("--ssl-certfile", help="Serve HTTPS with this certificate and its chain.")
@click.option("--ssl-keyfile", help="Its key, if it is in another file.")
@click.option("--ssl-ca-certs", help="What clients' certificates are checked against.")
@click.option(
    "--ssl-cert-reqs",
    type=click.IntRange(0, 2),
    default=0,
    show_default=True,
    help="Clients' certificates: 0 none, 1 if they have one, 2 required.",
)
@click.option(
    "--enable-ssl-refresh/--no-enable-ssl-refresh",
    default=False,
    help="Take a new certificate when its file changes.",
)
@click.option(
    "--allowed-origins",
    multiple=True,
    help="Web pages' origins that browsers let in (CORS): a list in JSON, or one; * is all.",
)
@click.option("--allowed-methods", multiple=True, help="For them. Default: all.")
@click.option("--allowed-headers", multiple=True, help="For them. Default: all.")
@click.option("--allow-credentials/--no-allow-credentials", default=False, help="For them.")
def command(model_tag: str | None, model: str | None, **flags: Any) -> int:
    """Returns the exit code; raises `StartupError` after having written the termination message."""
    try:
        return serve(model_tag or model, flags)
    except StartupError as error:
        write_termination(error.reason, str(error))
        raise


def serve(model: str | None, flags: dict[str, Any]) -> int:
    """Serve until a signal or a failure."""
    if not model:
        raise InvalidSettings("name a model: octavo serve MODEL")
    config = engine_config(model, flags)
    settings = serve_settings(model, flags)
    early = EarlySignals()
    early.install()
    listener = listen(flags["host"], flags["port"])
    process = spawn()  # before all that takes time here
    try:
        return _serve(config, settings, listener, early, process, flags["uvicorn_log_level"])
    finally:
        # Of use where it never was told what to load; `Run` waits for one that was.
        process.kill()
        process.wait()


def _serve(
    config: EngineConfig,
    settings: ServeSettings,
    listener: socket.socket,
    early: EarlySignals,
    process: subprocess.Popen[bytes],
    log_level: str,
) -> int:
    hide_torch()
    gc.disable()  # until the model is loaded: there is only start-up to walk through
    log_lines.install()
    for name in ("httpx", "httpcore", "huggingface_hub"):  # their every request is no news
        logging.getLogger(name).setLevel(logging.WARNING)

    async def run() -> int:
        # Imported here, in sight of the open socket: FastAPI takes most of a second.
        from octavo_server.api.run import Run

        return await Run(config, settings, listener, log_level, early, process).execute()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(run())


def engine_config(model: str, flags: dict[str, Any]) -> EngineConfig:
    """The engine's part of the flags. Raises `InvalidSettings` for values outside their range."""
    names = EngineConfig.__dataclass_fields__.keys() & flags.keys()
    config = EngineConfig(model=model, **{name: flags[name] for name in names})
    check_ranges(config)
    return config


def serve_settings(model: str, flags: dict[str, Any]) -> ServeSettings:
    """The HTTP side's part of the flags."""
    names = [
        name.strip()
        for given in flags["served_model_name"]
        for name in given.split(",")
        if name.strip()
    ]
    prefix = flags["metrics_prefix"]
    if not re.fullmatch(r"([a-zA-Z_:][a-zA-Z0-9_:]*)?", prefix):
        raise InvalidSettings(
            "--metrics-prefix must be letters, digits, _ and :, beginning with no digit, not"
            f" {prefix!r}"
        )
    keys = read_keys(flags["api_key"], flags["api_key_file"], os.environ.get(VARIABLE))
    tls = tls_files(
        *(flags[f"ssl_{name}"] for name in ("certfile", "keyfile", "ca_certs", "cert_reqs")),
        refresh=flags["enable_ssl_refresh"],
    )
    if tls is not None:
        make_context(tls)  # refused before anything is loaded
    if flags["max_reqs_per_key"] and not keys:
        raise InvalidSettings("--max-reqs-per-key needs --api-key: without keys, clients are one")
    return ServeSettings(
        served_model_names=tuple(names or [model]),
        max_logprobs=flags["max_logprobs"],
        max_body_bytes=flags["max_body_bytes"],
        max_num_queued_reqs=flags["max_num_queued_reqs"],
        max_num_queued_tokens=flags["max_num_queued_tokens"],
        max_reqs_per_key=flags["max_reqs_per_key"],
        priorities=flags["scheduling_policy"] == "priority",
        shutdown_timeout_seconds=flags["shutdown_timeout"],
        step_limit_seconds=flags["step_timeout"],
        metrics_prefix=prefix,
        chat_template=read_chat_template(flags["chat_template"]),
        api_keys=keys,
        tls=tls,
        cors=cors_of(
            flags["allowed_origins"],
            flags["allowed_methods"],
            flags["allowed_headers"],
            credentials=flags["allow_credentials"],
        ),
    )


def listen(host: str, port: int) -> socket.socket:
    """An open, listening socket; `StartupError` with one clear sentence if there can be none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (socket.gaierror, UnicodeError) as error:
        listener.close()
        raise StartupError(
            f"cannot listen on {host!r}: not an address or name of this machine"
        ) from error
    except OSError as error:
        listener.close()
        raise StartupError(
            f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}"
        ) from error
    listener.setblocking(False)
    return listener


def loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
