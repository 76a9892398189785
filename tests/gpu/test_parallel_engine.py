"""Engines over two GPUs of one host: their tokens, their memory, their ends.

python -m pytest tests/gpu/test_parallel_engine.py -n 0     # two to four minutes
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.gpu.best_five import check_greedy
from tests.server.distributed.shared_ranks import MODELS, Shared, answers, load, make_models
from tests.server.distributed.test_serve_ranks import END_SECONDS, Server, read
from tests.server.test_greedy_equals_transformers import make_prompts
from tests.server.tiny_models import VOCAB_SIZE, make_tiny

from octavo_server import SamplingParams
from octavo_server.engine import build

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.alone,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.xdist_group("two GPUs"),
]
GIB = 1 << 30
# Few rows: their graphs are captured at every start.
ON_GPU: dict[str, object] = {"device": "cuda", "max_num_seqs": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    """One start of rank 1 for all models of the tests that ask for it."""
    shared = Shared(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "Workers", lambda size, _: shared)
        yield shared
    shared.end()


@pytest.mark.parametrize(
    ("name", "eager"),
    [(name, False) for name in sorted(MODELS)] + [("gpt2", True), ("qwen3", True)],
)
def test_float32_tokens_are_those_of_one_gpu(
    name: str, eager: bool, models: Path, shared: Shared
) -> None:
    """Plain, warm, seeded, filtered, penalised, preempted; graphs, and steps without."""
    assert not torch.backends.cuda.matmul.allow_tf32
    settings = ON_GPU | {"enforce_eager": eager}
    assert answers(models / name, 2, **settings) == answers(models / name, 1, **settings)


def test_bfloat16_agrees_up_to_ties(models: Path, shared: Shared) -> None:
    prompts = make_prompts(VOCAB_SIZE)
    for name in ("qwen2", "tinyllama"):
        llm = load(models / name, 2, **(ON_GPU | {"dtype": "bfloat16", "max_model_len": 160}))
        params = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True)
        outputs = [each.outputs[0].token_ids for each in llm.generate(prompts, params)]
        assert [len(output) for output in outputs] == [48] * len(prompts)
        check_greedy(models / name, "bfloat16", prompts, outputs)


def used() -> list[int]:
    """Bytes in use on each GPU, as the driver says."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [int(line) << 20 for line in lines]


FLAGS = ("--device", "cuda", "--tensor-parallel-size", "2", "--max-model-len", "512",
         "--gpu-memory-utilization", "0.3")  # fmt: skip


@pytest.mark.parametrize("name", ["", "engine", "worker", "api"])
def test_memory_is_as_asked_and_all_given_back(name: str, tmp_path: Path) -> None:
    """A server at 0.3 of both cards, under load; then it is asked to end, or one part is killed."""
    model = str(make_tiny("qwen3", tmp_path / "tiny"))
    before = used()
    server = Server(tmp_path, model, *FLAGS)
    try:
        server.wait(lambda: server.status("/ready") == 200, 150)
        server.ready()
        lines: list[str] = []
        thread = threading.Thread(target=read, args=(server, lines))
        thread.start()
        server.wait(lambda: len(lines) > 3)
        total = torch.cuda.get_device_properties(0).total_memory
        for mine, then in zip(used()[:2], before, strict=False):
            # The context, half a GiB, comes on top, as vLLM counts it.
            assert 0.28 * total < mine - then < 0.32 * total + 0.8 * GIB
        began = time.monotonic()
        if name:
            server.parts[name].kill()
        else:
            thread.join(60)
            server.process.terminate()
        code: Any = server.process.wait(END_SECONDS)
        assert code == {"": 0, "api": -9}.get(name, 1)
        for process in server.parts.values():
            if process.pid != server.process.pid:
                process.wait(END_SECONDS)
        assert not name or time.monotonic() - began < END_SECONDS
        thread.join(10)
        deadline = time.monotonic() + 10
        while max(a - b for a, b in zip(used(), before, strict=True)) > 64 << 20:
            assert time.monotonic() < deadline, f"{used()} of {before} before"
            time.sleep(0.2)
    finally:
        print(server.errors.read_text()[-3000:])
        server.end()
