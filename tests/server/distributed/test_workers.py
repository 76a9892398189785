"""The ranks' processes: their deaths, and what they have to say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.server.tiny_models import make_tiny

from octavo_server import LLM, SamplingParams
from octavo_server.distributed.workers import Workers
from octavo_server.engine import build
from octavo_server.errors import EngineDead, InvalidSettings, OutOfMemory, StartupError

pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("qwen2", tmp_path_factory.mktemp("qwen2"))


def load(folder: Path, **settings: object) -> LLM:
    return LLM(
        str(folder), device="cpu", dtype="float32",
        **({"tensor_parallel_size": 2, "max_model_len": 96, "kv_cache_memory_bytes": 8 << 20}
           | settings),  # type: ignore[arg-type]
    )  # fmt: skip


def ask(llm: LLM) -> list[int]:
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    return llm.generate([[1, 2, 3]], params)[0].outputs[0].token_ids


def test_a_ranks_death_is_the_engines(folder: Path) -> None:
    llm = load(folder)
    workers = llm.core.runner._workers
    assert isinstance(workers, Workers)
    assert len(ask(llm)) == 8
    with pytest.raises(InvalidSettings, match="close it before another"):
        load(folder)
    workers._processes[0].kill()
    with pytest.raises(EngineDead, match="rank 1 of 2 ended by signal SIGKILL"):
        ask(llm)
    with pytest.raises(EngineDead, match="rank 1 of 2 ended by signal SIGKILL"):
        ask(llm)
    llm.close()
    assert workers._processes[0].returncode == -signal.SIGKILL


def test_what_another_rank_has_to_say_is_the_starts_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_config = build.local_config

    def lost(config: Any, path: str, dtype: str, device: str) -> Any:
        return local_config(config, path + "-not-here", dtype, device)

    monkeypatch.setattr(build, "local_config", lost)
    with pytest.raises(StartupError, match=r"rank 1 of 2: .*not-here") as caught:
        load(folder)
    assert caught.value.reason == "ModelNotFound"
    monkeypatch.undo()
    # Nothing of a start that failed is in the next one's way, whoever failed.
    with pytest.raises(OutOfMemory):
        load(folder, num_gpu_blocks_override=3)
    with pytest.raises(InvalidSettings, match="sizes that work: 1, 2, 4"):
        load(folder, tensor_parallel_size=3)
    llm = load(folder)
    assert len(ask(llm)) == 8
    llm.close()
    llm.close()
    with pytest.raises(EngineDead):
        ask(llm)


def test_a_step_that_does_not_end_ends_the_process(folder: Path) -> None:
    """A rank that hangs: here it is stopped. Nobody else can end the collective."""
    code = textwrap.dedent(f"""
        import os, signal, sys
        from octavo_server import LLM, SamplingParams
        llm = LLM({str(folder)!r}, device="cpu", dtype="float32", tensor_parallel_size=2,
                  max_model_len=96, kv_cache_memory_bytes=8 << 20, collective_timeout=1.0)
        llm.generate([[1, 2]], SamplingParams(max_tokens=2))
        rank = llm.core.runner._workers._processes[0].pid
        os.kill(rank, signal.SIGSTOP)
        print(rank, flush=True)
        llm.generate([[1, 2]], SamplingParams(max_tokens=2))
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        rank = psutil.Process(int(process.stdout.readline()))
        began = time.monotonic()
        assert process.wait(30) == 1
        assert time.monotonic() - began < 15
        assert "a step of 2 ranks has not ended within 1 s" in process.stderr.read()
        rank.wait(10)  # raises if it outlives it


def test_ranks_end_with_the_process_that_started_them(folder: Path) -> None:
    """Also where it was a thread that did."""
    code = textwrap.dedent(f"""
        import threading, time
        from octavo_server import LLM
        made = []
        def load():
            made.append(LLM({str(folder)!r}, device="cpu", dtype="float32", max_model_len=96,
                            tensor_parallel_size=2, kv_cache_memory_bytes=8 << 20))
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
        time.sleep(0.5)
        made[0].generate([[1, 2]])
        print(made[0].core.runner._workers._processes[0].pid, flush=True)
        time.sleep(60)
    """)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        rank = psutil.Process(int(process.stdout.readline()))
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        rank.wait(10)  # raises if it outlives it
