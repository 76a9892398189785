"""The engine as a process: its life, its deaths."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from octavo_server.config import EngineConfig
from octavo_server.engine.client import EngineClient
from octavo_server.engine.early import spawn
from octavo_server.engine.messages import Abort, Add, Failed, FromEngine, Heartbeat, Outputs, Ready
from octavo_server.sampling_params import SamplingParams
from tests.server.tiny_models import make_tiny

START_SECONDS = 60

T = TypeVar("T", bound=FromEngine)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama2", tmp_path_factory.mktemp("llama2"))


def settings(model: Path | str) -> EngineConfig:
    return EngineConfig(
        model=str(model), device="cpu", dtype="float32", kv_cache_memory_bytes=8 << 20
    )


class Watched:
    """A client and all it heard."""

    def __init__(
        self, config: EngineConfig, process: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.heard: list[FromEngine] = []
        self._news = asyncio.Event()
        self.client = EngineClient(config, on_message=self._hear, process=process)
        self.client.start()

    def _hear(self, message: FromEngine) -> None:
        self.heard.append(message)
        self._news.set()

    async def until(self, condition: Callable[[list[FromEngine]], bool]) -> None:
        """Wait until what was heard so far satisfies `condition`."""
        async with asyncio.timeout(START_SECONDS):
            while not condition(self.heard):
                self._news.clear()
                await self._news.wait()

    async def first(self, kind: type[T], count: int = 1) -> T:
        """The `count`th message of this kind, once it came."""
        await self.until(lambda heard: len(of_kind(heard, kind)) >= count)
        return of_kind(self.heard, kind)[count - 1]


def of_kind(heard: list[FromEngine], kind: type[T]) -> list[T]:
    return [message for message in heard if isinstance(message, kind)]


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[Watched]:
    watched = Watched(settings(folder))
    await watched.first(Ready)
    yield watched
    await watched.client.stop()


async def test_serves_requests_beats_and_leaves_when_asked(engine: Watched) -> None:
    params = SamplingParams(max_tokens=3, ignore_eos=True, seed=1)
    engine.client.send(Add("a", [5, 6, 7], params, time.monotonic()))
    await engine.until(lambda heard: tokens_of(heard)[-1:] == ["length"])
    assert len(tokens_of(engine.heard)) == 3 + 1
    beat = await engine.first(Heartbeat)
    assert abs(time.monotonic() - beat.now) < START_SECONDS
    assert engine.client.alive
    await engine.client.stop()
    assert engine.client.exit_code == 0 and not engine.client.alive
    assert not of_kind(engine.heard, Failed)


def tokens_of(heard: list[FromEngine]) -> list[int | str]:
    """All tokens that came, and the reasons of all ends."""
    found: list[int | str] = []
    for message in of_kind(heard, Outputs):
        for output in message.outputs:
            found += output.token_ids
            found += [output.finish_reason] if output.finish_reason else []
    return found


async def test_an_abort_frees_its_pages_and_moves_the_gauges(engine: Watched) -> None:
    params = SamplingParams(max_tokens=400, ignore_eos=True, seed=1)
    engine.client.send(Add("a", [5, 6, 7], params, time.monotonic()))
    await engine.first(Outputs, 3)
    engine.client.send(Abort(["a"]))
    await engine.until(lambda heard: of_kind(heard, Outputs)[-1].stats.running == 0)
    stats = of_kind(engine.heard, Outputs)[-1].stats
    assert (stats.running, stats.waiting, stats.kv_cache_usage) == (0, 0, 0.0)


async def test_death_by_signal_is_reported_once(engine: Watched) -> None:
    assert engine.client.pid is not None
    os.kill(engine.client.pid, signal.SIGKILL)
    assert "SIGKILL" in (await engine.first(Failed)).message
    assert not engine.client.alive and engine.client.exit_code == -signal.SIGKILL
    await asyncio.sleep(0.5)
    assert len(of_kind(engine.heard, Failed)) == 1


async def test_a_start_that_fails_says_why() -> None:
    watched = Watched(settings("/nowhere/at/all"))
    failed = await watched.first(Failed)
    assert failed.reason == "ModelNotFound" and "/nowhere/at/all" in failed.message
    await watched.client.stop()


@pytest.mark.parametrize("phase", ["loading", "idle"])
def test_no_engine_outlives_its_parent(folder: Path, phase: str) -> None:
    """kill -9 of the parent, while the engine loads and when it is ready."""
    program = textwrap.dedent(f"""
        import asyncio
        from octavo_server.engine.client import EngineClient
        from octavo_server.engine.messages import Ready
        from tests.server.engine.test_client import settings

        async def main():
            client = EngineClient(
                settings({str(folder)!r}),
                on_message=lambda m: isinstance(m, Ready) and print("ready", flush=True),
            )
            client.start()
            print(client.pid, flush=True)
            await asyncio.sleep(600)

        asyncio.run(main())
    """)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        engine = psutil.Process(int(parent.stdout.readline()))
        if phase == "idle":
            assert parent.stdout.readline() == "ready\n"
        parent.kill()
    assert not psutil.wait_procs([engine], timeout=START_SECONDS)[1]


async def test_messages_of_one_turn_arrive_in_order_and_once(engine: Watched) -> None:
    names = [f"r{index}" for index in range(50)]
    for index, name in enumerate(names):
        # The aborted ones are too long to end before their abort arrives.
        tokens = 2 if index < 25 else 400
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=1)
        engine.client.send(Add(name, [5, 6, 7], params, time.monotonic(), stream=False))
    engine.client.send(Abort(names[25:]))
    await engine.until(
        lambda heard: (
            tokens_of(heard).count("length") == 25
            and of_kind(heard, Outputs)[-1].stats.running == 0
        )
    )
    ended = [o.request_id for m in of_kind(engine.heard, Outputs) for o in m.outputs]
    assert sorted(ended) == sorted(names[:25])


async def test_one_that_raises_does_not_stop_the_messages_behind(folder: Path) -> None:
    heard: list[FromEngine] = []
    ready = asyncio.Event()

    def hear(message: FromEngine) -> None:
        heard.append(message)
        if isinstance(message, Ready):
            ready.set()
        raise ValueError("nothing pleases me")

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    client = EngineClient(settings(folder), on_message=hear)
    client.start()
    async with asyncio.timeout(START_SECONDS):
        await ready.wait()
    assert len(heard) > 1
    await client.stop()


def test_a_process_that_gets_no_settings_leaves() -> None:
    process = spawn()
    assert process.stdin is not None
    time.sleep(0.5)  # amid its imports
    process.stdin.close()
    assert process.wait(START_SECONDS) == 0


async def test_a_process_that_died_before_its_settings_is_reported(folder: Path) -> None:
    process = spawn()
    process.kill()
    process.wait()
    watched = Watched(settings(folder), process)
    assert "SIGKILL" in (await watched.first(Failed)).message
    await watched.client.stop()
