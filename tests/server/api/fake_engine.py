"""An engine that follows a script, and a real HTTP server in a thread before it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import uvicorn
from tests.server.text.tiny_tokenizers import byte_level

from octavo_server.api.app import create_app
from octavo_server.api.run import HttpServer
from octavo_server.api.service import Service
from octavo_server.api.settings import ServeSettings
from octavo_server.engine.messages import (
    Abort,
    Add,
    EngineStats,
    FromEngine,
    Outputs,
    Ready,
    ToEngine,
    TokenLogprobs,
    TokenOutput,
)

EOS = 0
MAX_MODEL_LEN = 200
VOCAB_SIZE = 450  # more than the tokenizer's 400
Script = Callable[[Add], Iterator[TokenOutput]]


def say(text: str, *, finish: str = "stop") -> Script:
    """Every request answers `text`, one token a step, then EOS; max_tokens ends it earlier."""

    def script(add: Add) -> Iterator[TokenOutput]:
        ids = byte_level().encode(text, add_special_tokens=False)
        if finish == "stop":
            ids = [*ids, EOS]
        for index, token_id in enumerate(ids):
            output = TokenOutput(add.request_id, [token_id])
            if index == 0:
                output.cached_tokens, output.scheduled = 0, time.monotonic()
                if add.params.prompt_logprobs is not None:
                    top = add.params.prompt_logprobs
                    output.prompt_logprobs = [None]
                    output.prompt_logprobs += [
                        logprobs_of(i, top) for i in add.prompt_token_ids[1:]
                    ]
            if add.params.logprobs is not None:
                output.logprobs = [logprobs_of(token_id, add.params.logprobs)]
            if token_id == EOS and not add.params.ignore_eos:
                output.finish_reason, output.stop_token_id = "stop", EOS
            elif index + 1 == min(add.params.max_tokens or 10**9, len(ids)):
                output.finish_reason = "length"
            yield output
            if output.finish_reason:
                return

    return script


def logprobs_of(token_id: int, top: int) -> TokenLogprobs:
    ids = [token_id, 10, 11, 12, 13][:top]
    return TokenLogprobs(token_id, -0.5, 1, ids, [-0.5 - i for i in range(len(ids))])


class FakeEngine:
    """The client's interface: `send`, `on_message`. Steps while `gate` is set, `rows` requests at
    a time.
    """

    def __init__(self, script: Script, step_seconds: float = 0.0, rows: int = 10**6) -> None:
        self.script = script
        self.rows = rows
        self.added = 0
        self.step_seconds = step_seconds
        self.on_message: Callable[[FromEngine], None] = lambda message: None
        self.gate = asyncio.Event()
        self.gate.set()
        self.adds: list[Add] = []
        self.aborted: list[str] = []
        self.lengths: dict[str, int] = {}
        self.running: dict[str, Iterator[TokenOutput]] = {}
        self._work = asyncio.Event()

    def send(self, message: ToEngine) -> None:
        match message:
            case Add():
                self.adds.append(message)
                self.added += 1
                self.lengths[message.request_id] = len(message.prompt_token_ids)
                self.running[message.request_id] = self.script(message)
                self._work.set()
            case Abort():
                self.aborted += message.request_ids
                for request_id in message.request_ids:
                    self.running.pop(request_id, None)

    async def run(self) -> None:
        while True:
            await self._work.wait()
            await self.gate.wait()
            await asyncio.sleep(self.step_seconds)
            outputs = []
            for request_id, steps in list(self.running.items())[: self.rows]:
                output = next(steps, None)
                if output is not None:
                    outputs.append(output)
                if output is None or output.finish_reason:
                    del self.running[request_id]
            count = min(len(self.running), self.rows)
            stats = EngineStats(
                running=count,
                waiting=len(self.running) - count,
                waiting_tokens=sum(self.lengths[i] for i in list(self.running)[self.rows :]),
                kv_cache_usage=min(count / 100, 1.0),
                generation_tokens=len(outputs),
                step_tokens=len(outputs),
                added=self.added,
            )
            self.added = 0
            self.on_message(Outputs(outputs, stats, time.monotonic()))
            if not self.running:
                self._work.clear()


class Server:
    """A running server; `call` runs a function in its loop."""

    def __init__(self, loop, service: Service, engine: FakeEngine, port: int) -> None:
        self.loop, self.service, self.engine = loop, service, engine
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=20)

    def call(self, function, *args):
        async def run():
            return function(*args)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def completion(self, **body):
        return self.http.post("/v1/completions", json={"prompt": "hello", **body})

    def chat(self, **body):
        messages = [{"role": "user", "content": "hello"}]
        return self.http.post("/v1/chat/completions", json={"messages": messages, **body})

    def wait(self, condition, seconds: float = 5.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "timed out"
            time.sleep(0.005)


@contextmanager
def serving(
    script: Script | None = None,
    *,
    step_seconds: float = 0.0,
    rows: int = 10**6,
    ready: bool = True,
    defaults: object = None,
    **settings,
) -> Iterator[Server]:
    """A server on a free port with a scripted engine, until the block ends."""
    started = threading.Event()
    box: list[Server] = []

    async def main() -> None:
        engine = FakeEngine(script or say("hello world"), step_seconds, rows)
        names = settings.pop("served_model_names", ("tiny", "alias"))
        service = Service(ServeSettings(served_model_names=names, **settings), send=engine.send)
        engine.on_message = service.on_message
        if ready:
            make_ready(service, defaults)
        listener = socket.create_server(("127.0.0.1", 0))
        http = HttpServer(
            uvicorn.Config(
                create_app(service),
                log_level="error",
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=1,
            )
        )
        stop = asyncio.Event()
        server = Server(asyncio.get_running_loop(), service, engine, listener.getsockname()[1])
        server.stop = stop.set
        box.append(server)
        steps = asyncio.create_task(engine.run())
        task = asyncio.create_task(http.serve(sockets=[listener]))
        started.set()
        await stop.wait()
        http.should_exit = True
        await task
        steps.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert started.wait(10)
    server = box[0]
    try:
        yield server
    finally:
        server.http.close()
        server.loop.call_soon_threadsafe(server.stop)
        thread.join(10)
        assert not thread.is_alive()


def make_ready(service: Service, defaults: object = None) -> None:
    service.set_tokenizer(byte_level(), defaults or SimpleNamespace(eos_token_ids=[EOS]))
    service.on_message(Ready(MAX_MODEL_LEN, VOCAB_SIZE, 16, 100, 8, "float32", "cpu"))
