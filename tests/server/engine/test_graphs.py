"""Graphs that find no memory are left out, whoever says so; other errors are errors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from octavo_server.engine.graphs import Graphs

TRITON = RuntimeError("Triton Error [CUDA]: out of memory")


class Capture:
    """In the place of torch's graph; `at_end` is what its end raises after a failed capture."""

    at_end: Exception | None = None

    def capture_begin(self, **_: Any) -> None:
        self.failed = True

    def capture_end(self) -> None:
        if self.at_end is not None:
            raise self.at_end

    def replay(self) -> None:
        pass


def graphs(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], **more: Any) -> Graphs:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Capture)
    arena: Any = SimpleNamespace(memory=nullcontext, pool_id=(0, 1))
    return Graphs(function, arena, **more)


def failing(error: Exception, at: int) -> Callable[[], torch.Tensor]:
    """Call number `at` fails: 1 is the run before the capture, 2 the capture."""
    calls = 0

    def function() -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error
        return torch.ones(1)

    return function


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("error", [TRITON, torch.OutOfMemoryError("CUDA out of memory.")])
def test_without_memory_there_is_no_graph(
    monkeypatch: pytest.MonkeyPatch, error: Exception, at: int
) -> None:
    captured = graphs(monkeypatch, failing(error, at))
    assert not captured.capture()
    assert captured.has() and captured.replay() is None


def test_what_ends_a_failed_capture_does_not_hide_why_it_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Capture, "at_end", RuntimeError("operation failed due to a previous error"))
    captured = graphs(monkeypatch, failing(TRITON, 2))
    assert not captured.capture()


def test_other_errors_and_graphs_that_all_ranks_need_are_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RuntimeError, match="illegal address"):
        graphs(monkeypatch, failing(RuntimeError("an illegal address"), 2)).capture()
    with pytest.raises(RuntimeError, match="out of memory"):
        graphs(monkeypatch, failing(TRITON, 1), needed=True).capture()
