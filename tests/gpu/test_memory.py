"""A GPU that is shared, too small, or full: what the engine says and does.

Each engine is a process of its own with a llama of 2.5 GiB; the card must be theirs alone (marker
`alone`), so these run one after another and beside nothing:

    python -m pytest tests/gpu -m "gpu and alone" -n 0
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
GIB = 1 << 30
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

on_gpu_alone = [pytest.mark.gpu, pytest.mark.alone, pytest.mark.xdist_group("card")]
"""Of all but the rehearsal: one worker, and a command of its own."""

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 5,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 384,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
LONG = {"prompt": 8000}
"""More tokens than graphs are captured for; its activations take 0.9 GiB."""

SHORT = {"prompt": 9, "same": True}
ROOM = 3.7 * GIB
"""Left by a tenant who takes nearly all: contexts and weights fit, the largest step does not."""

WEIGHTLESS = 2.0 * GIB
"""Here not even the weights do."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama-2.5g")
    config = CONFIG if DEVICE == "cuda" else CONFIG | TINY
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Compiled once for all engines of this file."""
    return os.environ.get("TRITON_CACHE_DIR") or str(tmp_path_factory.mktemp("kernels"))


class Process:
    """Lines in, lines out."""

    def __init__(self, script: str, *arguments: str, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def send(self, message: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"it ended with {self._process.wait(timeout=30)}"
        return line

    def end(self) -> int:
        """Its input ends, and so does it; what it held is free again."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return self._process.wait(timeout=30)
        finally:
            self._process.kill()
            assert self._process.stdout is not None
            self._process.stdout.close()


class Engine(Process):
    """`start` is the line that says how the start ended, `log` what was said before."""

    def __init__(self, model: Path, kernels: str, **settings: Any) -> None:
        super().__init__("engine_process.py", TRITON_CACHE_DIR=kernels)
        defaults = {"model": str(model), "load_format": "dummy", "max_num_seqs": 16}
        defaults |= {"device": DEVICE, "dtype": "bfloat16" if DEVICE == "cuda" else "float32"}
        self.send(defaults | settings)
        self.log: list[str] = []
        while "log" in (said := json.loads(self.line())):
            self.log.append(said["log"])
        self.start: dict[str, Any] = said

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.send(request)
        found: dict[str, Any] = json.loads(self.line())
        return found


@contextmanager
def started(model: Path, kernels: str, **settings: Any) -> Iterator[Engine]:
    engine = Engine(model, kernels, **settings)
    try:
        yield engine
    finally:
        engine.end()


@contextmanager
def tenant(size: float) -> Iterator[int]:
    """Bytes that another process holds meanwhile; see memory_tenant.py for what `size` means."""
    process = Process("memory_tenant.py", str(int(size)))
    try:
        yield int(process.line().removeprefix("held "))
    finally:
        process.end()


def refusal(engine: Engine) -> str:
    """The one line that a person gets, checked for what every refusal has."""
    assert engine.start.get("reason") == "OutOfMemory", engine.start
    text: str = engine.start["refused"]
    print(text)
    assert "\n" not in text
    assert "GiB" in text
    return text


class TestOnACardOfItsOwn:
    pytestmark = on_gpu_alone

    def test_utilization_leaves_the_rest_of_the_card_alone(self, model: Path, kernels: str) -> None:
        with started(model, kernels, gpu_memory_utilization=0.3) as engine:
            assert "ready" in engine.start, engine.start
            assert not any("in use before" in line for line in engine.log)
            engine.ask(dict(LONG))
            found = engine.ask({**LONG, "logprobs": 3})
        share = (found["used"] - engine.start["used_before"]) / found["total"]
        assert 0.27 < share < 0.302

    def test_starts_beside_a_tenant_and_says_what_that_one_holds(
        self, model: Path, kernels: str
    ) -> None:
        with tenant(20 * GIB), started(model, kernels, gpu_memory_utilization=0.9) as engine:
            assert "ready" in engine.start, engine.start
            (line,) = (line for line in engine.log if line.startswith("GPU memory:"))
            print(line)
            said = re.search(r"([\d.]+) GiB of this GPU were in use before", line)
            assert said is not None, line
            assert 20 <= float(said[1]) < 22.5
            found = engine.ask(dict(LONG))
            assert (found["error"], len(found["tokens"])) == (None, 4)

    @pytest.mark.parametrize("room", [ROOM, WEIGHTLESS], ids=["step", "weights"])
    def test_refuses_where_a_tenant_holds_nearly_all(
        self, model: Path, kernels: str, room: float
    ) -> None:
        with tenant(-room) as held, started(model, kernels, enforce_eager=True) as engine:
            text = refusal(engine)
        assert "free the GPU" in text
        said = re.search(r"([\d.]+)( GiB)?( of this GPU)? were in use before", text)
        assert said is not None, text
        assert held / GIB <= float(said[1]) < held / GIB + 2.5

    def test_refuses_where_not_even_a_context_fits(self, model: Path, kernels: str) -> None:
        with tenant(0), started(model, kernels, enforce_eager=True) as engine:
            assert "free the GPU" in refusal(engine)

    def test_refuses_a_share_that_is_too_small(self, model: Path, kernels: str) -> None:
        with started(model, kernels, enforce_eager=True, gpu_memory_utilization=0.02) as engine:
            text = refusal(engine)
        for term in ("x 0.02", "weights", "activations", "raise --gpu-memory-utilization"):
            assert term in text

    @pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
    def test_a_step_that_finds_no_memory_costs_its_request_alone(
        self, model: Path, kernels: str, eager: bool
    ) -> None:
        """Also when it happens more often in a row than an engine survives other failures."""
        settings = {"kv_cache_memory_bytes": GIB // 2, "enforce_eager": eager}
        with started(model, kernels, **settings) as engine:
            assert "ready" in engine.start, engine.start
            before = engine.ask(dict(SHORT))
            assert before["error"] is None
            with tenant(0):
                for _ in range(4):
                    failed = engine.ask(dict(LONG))
                    assert failed["tokens"] == []
                    assert "ran out of memory" in failed["error"]
                    assert "\n" not in failed["error"]
                print(failed["error"])
                if not eager:  # their memory was there before
                    assert engine.ask(dict(SHORT))["tokens"] == before["tokens"]
            after = engine.ask(dict(LONG))
            assert (after["error"], len(after["tokens"])) == (None, 4)
            assert engine.ask(dict(SHORT))["tokens"] == before["tokens"]


@pytest.mark.skipif(DEVICE == "cuda", reason="the tests above do the same on the GPU")
def test_the_processes_of_these_tests_work(model: Path, kernels: str) -> None:
    """Without a GPU: a start, an answer, and a refusal."""
    settings = {"kv_cache_memory_bytes": 64 << 20, "max_model_len": 64}
    with started(model, kernels, **settings) as engine:
        assert "ready" in engine.start
        first, second = engine.ask(dict(SHORT)), engine.ask(dict(SHORT))
        assert first["error"] is None
        assert first["tokens"] == second["tokens"]
        assert len(first["tokens"]) == 4
    with started(model, kernels, kv_cache_memory_bytes=1) as engine:
        assert engine.start["reason"] == "OutOfMemory"
