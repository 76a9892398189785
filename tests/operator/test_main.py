"""The periodic pass."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo_operator import main as module
from octavo_operator.kube import KubeError
from octavo_operator.main import enqueue_all
from octavo_operator.metrics import Metrics
from octavo_operator.queue import Queue


class Namespaces:
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def list(self, _version: str, _kind: str, namespace: str) -> list[dict[str, Any]]:
        if namespace == "bad":
            raise self.error
        return [{"metadata": {"namespace": namespace, "name": name}} for name in ("x", "y")]


@pytest.mark.parametrize("error", [KubeError(403, "Forbidden", "no"), TypeError("not a list")])
def test_one_bad_namespace_does_not_stop_the_others(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> set[tuple[str, str]]:
        kube: Any = Namespaces(error)
        queue, naps = Queue(lambda: 0.0), 0

        async def sleep(_: float) -> None:
            nonlocal naps
            naps += 1
            if naps == 2:
                raise asyncio.CancelledError

        monkeypatch.setattr(module.asyncio, "sleep", sleep)
        with pytest.raises(asyncio.CancelledError):
            await enqueue_all(kube, queue, Metrics(queue), ("bad", "good"), 0.0)
        return set(iter(queue.pop, None))

    assert asyncio.run(story()) == {("good", "x"), ("good", "y")}
