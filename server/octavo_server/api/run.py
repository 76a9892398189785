"""One server's life: the socket is open before the model loads, and the exit says how it ended."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import uvicorn
from starlette.types import ASGIApp

from octavo_server.api.app import create_app
from octavo_server.api.errors import Unavailable
from octavo_server.api.service import Service
from octavo_server.api.settings import ServeSettings
from octavo_server.api.signals import STOP_SIGNALS, EarlySignals
from octavo_server.api.termination import write_termination
from octavo_server.api.tls import keep_fresh, make_context
from octavo_server.config import EngineConfig
from octavo_server.engine.messages import Failed, ToEngine
from octavo_server.errors import StartupError
from octavo_server.log_lines import stamped

if TYPE_CHECKING:
    from octavo_server.engine.client import EngineClient

logger = logging.getLogger(__name__)
T = TypeVar("T")

# How long the last responses may take to be read, once nothing runs any more; after SIGTERM, this
# part of --shutdown-timeout if that is less.
_FLUSH_SECONDS = 5
_FLUSH_PART = 0.1
_HURRY_SECONDS = 0.5  # to write what can be written at once, after a second signal
# New objects before the young are looked at: what 500 requests at once need does not reach it ten
# times (a full collection), and what cycles of theirs may wait stays under some MB.
_COLLECT_AFTER = 20_000
_CUT = 130  # the exit code after a second signal that cut answers, as shells have it of Ctrl-C
_STOP_SECONDS = 5  # for the engine to leave by itself


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: ours are installed before the model loads."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def spare_collections() -> None:
    """What start-up made stays: full collections that walk it cost 300 us a request under load."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 10, 10)
    gc.enable()


def http_server(app: ASGIApp, log_level: str, context: ssl.SSLContext | None = None) -> HttpServer:
    """uvicorn as Octavo wants it, for `app`; over TLS if there is a context."""
    config = uvicorn.Config(
        app,
        log_level=log_level,
        access_log=log_level in ("info", "debug", "trace"),
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_FLUSH_SECONDS,
    )
    config.load()
    config.ssl = context
    return HttpServer(config)


class Run:
    """Loads, serves, drains. `execute` returns the exit code."""

    def __init__(
        self,
        config: EngineConfig,
        settings: ServeSettings,
        listener: socket.socket,
        log_level: str,
        early: EarlySignals,
        engine_process: subprocess.Popen[bytes],
    ) -> None:
        self._early = early
        self._engine_process = engine_process
        self._hurry = asyncio.Event()
        self._flush_seconds = float(_FLUSH_SECONDS)
        self._config = config
        self._settings = settings
        self._listener = listener
        self._engine: EngineClient | None = None
        self._loaded = False
        self._signals = 0
        self._cut = False
        self._stop = asyncio.Event()
        self._failed: asyncio.Future[Failed] = asyncio.get_running_loop().create_future()
        self._service = Service(
            settings,
            send=self._send,
            progress=self.progress,
            on_loaded=self._on_loaded,
            on_failed=self._on_failed,
        )
        tls = settings.tls
        self._tls = None if tls is None else make_context(tls)
        self._http = http_server(create_app(self._service), log_level, self._tls)

    async def execute(self) -> int:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        for _ in range(self._early.count):
            self._on_signal()
        logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
        http = asyncio.create_task(self._http.serve(sockets=[self._listener]), name="http")
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        load = asyncio.create_task(self._load(), name="load")
        fresh = None
        if self._tls is not None and self._settings.tls is not None and self._settings.tls.refresh:
            fresh = asyncio.create_task(keep_fresh(self._tls, self._settings.tls), name="fresh")
        try:
            ends: set[asyncio.Future[Any]] = {http, stop, self._failed}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not self._failed.done():
                await self._drain()
            return self._exit_code()
        finally:
            load.cancel()
            stop.cancel()
            if fresh is not None:
                fresh.cancel()
            await self._close(http)

    async def _close(self, http: asyncio.Task[None]) -> None:
        self._http.should_exit = True
        hurry = asyncio.create_task(self._hurry.wait(), name="hurry")
        ends: set[asyncio.Future[Any]] = {http, hurry}
        await asyncio.wait(ends, timeout=self._flush_seconds, return_when=asyncio.FIRST_COMPLETED)
        # Whoever has not read by now will not: uvicorn would wait for each of them.
        self._http.force_exit = True
        await asyncio.wait([http], timeout=_HURRY_SECONDS)
        if self._engine is not None:
            # One that still loads would not listen: it is killed at once.
            patient = self._loaded and not self._hurry.is_set()
            leave = asyncio.create_task(self._engine.stop(_STOP_SECONDS if patient else 0))
            await asyncio.wait({leave, hurry}, return_when=asyncio.FIRST_COMPLETED)
            if not leave.done():
                leave.cancel()
                await asyncio.wait([leave])
                await self._engine.stop(0)
            else:
                leave.result()
        hurry.cancel()

    def progress(self, text: str) -> None:
        """One line for people."""
        print(stamped(text), file=sys.stderr, flush=True)

    async def _load(self) -> None:
        try:
            source = await in_daemon_thread(self._find_model)
            self._start_engine(str(source.path))
            tokenizer, defaults = await in_daemon_thread(lambda: self._load_tokenizer(source))
            gc.freeze()  # so that the collection in `spare_collections` has little to walk
            self._service.set_tokenizer(tokenizer, defaults)
        except StartupError as error:
            self._service.fail(Failed(error.reason, str(error), error.exit_code))
        except Exception as error:
            logger.exception("start-up failed")
            self._service.fail(Failed("StartupFailed", f"{type(error).__name__}: {error}"))

    def _find_model(self) -> Any:
        from octavo_server.loading.source import resolve_source

        self.progress(f"looking for {self._config.model}")
        return resolve_source(self._config, self.progress)

    def _load_tokenizer(self, source: Any) -> tuple[Any, Any]:
        from octavo_server.loading.describe import read_generation_defaults
        from octavo_server.loading.tokenizer import load_tokenizer

        config = self._config
        defaults = read_generation_defaults(source, config.generation_config)
        tokenizer = load_tokenizer(source, config.tokenizer, config.trust_remote_code)
        return tokenizer, defaults

    def _start_engine(self, path: str) -> None:
        from octavo_server.engine.client import EngineClient

        config = self._config
        self._service.set_cache_config(
            {
                "gpu_memory_utilization": str(config.gpu_memory_utilization),
                "enable_prefix_caching": str(config.enable_prefix_caching),
            }
        )
        # The files were found here; the engine need not ask the Hub again.
        found = dataclasses.replace(config, model=path, revision=None)
        self._engine = EngineClient(
            found, on_message=self._service.on_message, process=self._engine_process
        )
        self._engine.start()

    def _send(self, message: ToEngine) -> None:
        if self._engine is not None:
            self._engine.send(message)

    def _on_loaded(self) -> None:
        self._loaded = True
        spare_collections()
        host, port = self._listener.getsockname()[:2]
        name = self._settings.served_model_names[0]
        scheme = "http" if self._tls is None else "https"
        self.progress(f"ready: {name} on {scheme}://{host}:{port}/v1")

    def _on_failed(self, failed: Failed) -> None:
        if not self._failed.done():
            self._failed.set_result(failed)

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals == 1:
            self._service.lifecycle.drain()
            self._stop.set()
        else:
            self._cut = self._cut or self._service.lifecycle.active > 0
            self._end_all()
            self._hurry.set()

    async def _drain(self) -> None:
        """Until nothing runs, the time is over, a second signal came, or the engine failed."""
        lifecycle = self._service.lifecycle
        lifecycle.drain()
        seconds = self._settings.shutdown_timeout_seconds
        if lifecycle.active:
            self.progress(
                f"shutting down: {lifecycle.active} requests have {seconds:g} s to be answered; a "
                "second signal cuts them"
            )
        else:
            self.progress("shutting down")
        self._flush_seconds = min(_FLUSH_SECONDS, seconds * _FLUSH_PART)
        idle = asyncio.create_task(lifecycle.idle.wait(), name="idle")
        hurry = asyncio.create_task(self._hurry.wait(), name="hurry")
        ends: set[asyncio.Future[Any]] = {idle, hurry, self._failed}
        await asyncio.wait(
            ends, timeout=seconds - self._flush_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        idle.cancel()
        hurry.cancel()
        self._end_all()

    def _end_all(self) -> None:
        self._service.requests.fail_all(
            Unavailable("the server shut down before this answer was complete")
        )

    def _exit_code(self) -> int:
        if not self._failed.done():
            return _CUT if self._cut else 0
        failed = self._failed.result()
        write_termination(failed.reason, failed.message)
        print(f"error: {failed.message}", file=sys.stderr, flush=True)
        return failed.exit_code or 1


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """A filter: answers that end with the server are no errors of it, and need no traceback."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """`work()` in a thread that cannot keep the process alive, as a pool's would (a download)."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop is closed: nobody waits
            pass

    threading.Thread(target=body, name="loader", daemon=True).start()
    return await future
