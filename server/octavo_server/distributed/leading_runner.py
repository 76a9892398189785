"""Rank 0's runner: every step goes to the other ranks first, and then to its own."""

from __future__ import annotations

import gc
from typing import Any

from octavo_server.distributed.orders import Capture, Run
from octavo_server.distributed.workers import Workers
from octavo_server.engine.launched import Launched
from octavo_server.engine.runner import Runner
from octavo_server.engine.step import Sampled, Step
from octavo_server.errors import EngineDead


class LeadingRunner:
    """As `Runner`. Any failure is the group's end (`EngineDead`), a lack of memory included: where
    one rank left a step out, the others would wait for it, and their caches would differ.
    """

    def __init__(self, runner: Runner, workers: Workers) -> None:
        self._runner, self._workers = runner, workers
        self.has_graphs = runner.has_graphs

    def launch(self, step: Step) -> Launched:
        self._workers.step_begins()
        try:
            self._workers.order(Run(step))
            return self._runner.launch(step)
        except Exception as error:
            raise EngineDead(self._workers.cause(error)) from error
        finally:
            self._workers.step_ends()

    def wait(self, launched: Launched) -> Sampled:
        self._workers.step_begins()
        try:
            return self._runner.wait(launched)
        except Exception as error:
            raise EngineDead(self._workers.cause(error)) from error
        finally:
            self._workers.step_ends()

    def capture(self) -> int:
        self._workers.order(Capture())
        return self._runner.capture()

    def close(self) -> None:
        """End the other ranks; nothing can be launched afterwards."""
        # NOTE: graphs hold on to the group's communicator, which waits for them.
        runner: Any = None
        self._runner = runner
        gc.unfreeze()  # a start may have frozen them
        gc.collect()
        self._workers.close()
