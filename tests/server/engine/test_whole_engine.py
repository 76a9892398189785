"""Whatever happens around a request, it gets what it gets alone: see `programs`."""

from __future__ import annotations

import dataclasses
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from octavo_kernels.ops import AttentionBatch, select_ops
from octavo_kernels.step_inputs import StepBuffers
from octavo_server.engine import graphs, rank
from octavo_server.engine import runner as runners
from octavo_server.engine.core import EngineCore
from octavo_server.engine.runner import Runner
from tests.server.engine.programs import (
    REQUESTS,
    Alone,
    answers_alone,
    build,
    random_settings,
    run_program,
)
from tests.server.tiny_models import make_tiny

PROGRAMS = int(os.environ.get("OCTAVO_SOAK_PROGRAMS", "6"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("qwen2", tmp_path_factory.mktemp("model"), num_hidden_layers=2)


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[Alone]:
    return answers_alone(folder)


def run_one(
    folder: Path,
    alone: list[Alone],
    program: int,
    prepare: Callable[[EngineCore, random.Random], None] = lambda core, chance: None,
) -> Counter[str]:
    chance = random.Random(program)
    settings = random_settings(chance)
    try:
        core = build(folder, **settings)
        prepare(core, chance)
        return run_program(core, chance, alone)
    except AssertionError as error:
        error.add_note(f"in program {program}: {settings}")
        raise


def test_nothing_around_a_request_changes_its_answer(folder: Path, alone: list[Alone]) -> None:
    seen = Counter[str]()
    for program in range(PROGRAMS):
        seen += run_one(folder, alone, program)
    for what, share in (("whole", 0.5), ("aborted", 0.05), ("failed", 0.03), ("preempted", 0.03)):
        assert seen[what] >= share * PROGRAMS * REQUESTS, seen


class Replayed:
    """Calls the function where a graph would be replayed; sometimes there was no memory for it."""

    def __init__(self, function: Callable[..., Tensor], chance: random.Random) -> None:
        self.calls = 0
        self._function, self._chance = function, chance

    def has(self, *key: int) -> bool:
        return True

    def replay(self, *key: int) -> Tensor | None:
        if self._chance.random() < 0.1:
            return None
        self.calls += 1
        return self._function(*key)


def strict_ops() -> Any:
    """The CPU's ops, which notice a step that is larger than what was provided for."""
    plain = select_ops("cpu")

    def step_inputs(
        packet: Tensor, buffers: StepBuffers, *rest: Any, seq_cap: int, token_cap: int, **more: Any
    ) -> None:
        seqs, tokens, sampled = packet[:3].tolist()
        assert seqs <= seq_cap and sampled <= seq_cap and tokens <= token_cap
        for buffer in buffers:
            buffer.fill_(7)  # what is not written now must not be read
        plain.step_inputs(packet, buffers, *rest, seq_cap=seq_cap, token_cap=token_cap, **more)

    def paged_attention(
        query: Tensor, keys: Tensor, values: Tensor, batch: AttentionBatch, **more: Any
    ) -> Tensor:
        lengths = batch.query_starts.diff().tolist()
        assert int(batch.query_starts[-1]) <= len(query)
        assert max(lengths) <= batch.max_query_len
        assert int(batch.context_lens.max()) <= batch.max_context_len
        assert all(length != 1 for length in lengths[batch.num_decodes :])
        return plain.paged_attention(query, keys, values, batch, **more)

    return dataclasses.replace(plain, step_inputs=step_inputs, paged_attention=paged_attention)


def test_graphs_of_any_buckets_change_nothing(
    folder: Path, alone: list[Alone], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps as graphs run them, padded to buckets whose bounds are so small that all are met."""
    monkeypatch.setattr(rank, "select_ops", lambda _: strict_ops())
    calls = Counter[str]()

    def prepare(core: EngineCore, chance: random.Random) -> None:
        runner = core.runner
        assert isinstance(runner, Runner)
        replayed = {
            "whole": Replayed(runner._decode_and_draw, chance),
            "decode": Replayed(runner._decode, chance),
            "mixed": Replayed(runner._mixed, chance),
            "head": Replayed(runner._draw_last, chance),
        }
        runner._graphs = SimpleNamespace(**replayed)  # type: ignore[assignment]
        runner._last.fill_(float("nan"))
        made.append(replayed)

    made: list[dict[str, Replayed]] = []
    for program in range(100, 100 + PROGRAMS):
        chance = random.Random(program)
        monkeypatch.setattr(graphs, "MAX_ROWS", chance.choice([2, 5, 512]))
        monkeypatch.setattr(runners, "MIXED_SEQUENCES", chance.choice([1, 3, 64]))
        monkeypatch.setattr(runners, "SHORT_QUERY", chance.choice([4, 1024]))
        monkeypatch.setattr(runners, "SHORT_CONTEXT", chance.choice([20, 4096]))
        monkeypatch.setattr(runners, "FEW_SEQUENCES", chance.choice([1, 4]))
        run_one(folder, alone, program, prepare)
    for replayed in made:
        calls.update({name: graph.calls for name, graph in replayed.items()})
    assert min(calls[name] for name in ("whole", "decode", "mixed", "head")) > 10, calls
