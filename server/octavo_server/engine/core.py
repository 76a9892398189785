"""The engine as one object: requests in, a step at a time, tokens out. Knows no process and no
clock but time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Protocol

from octavo_server.engine.messages import Abort, Add, Outputs, Ready, TokenOutput
from octavo_server.engine.scheduler import Scheduler
from octavo_server.engine.step import Sampled, Step
from octavo_server.errors import EngineDead

logger = logging.getLogger(__name__)

MAX_FAILED_STEPS = 3
"""Failures in a row before the engine gives up: one odd request must not end it, a broken device
must.
"""


class StepRunner(Protocol):
    """What executes steps: `runner.Runner`, or a scripted one in tests."""

    def execute(self, step: Step) -> Sampled: ...


class EngineCore:
    """Ties the scheduler to a runner. `step_started` tells a watcher how long the current step
    takes.
    """

    def __init__(self, scheduler: Scheduler, runner: StepRunner, ready: Ready) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.ready = ready
        self.steps_done = 0
        self.step_started: float | None = None
        self._failed_in_a_row = 0
        self._silent = True

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add(self, request: Add) -> None:
        self.scheduler.add(request)
        self._silent = False

    def abort(self, request_ids: Iterable[str]) -> None:
        self.scheduler.abort(request_ids)
        self._silent = False

    def handle(self, message: Add | Abort) -> None:
        """Apply one message of the API process."""
        if isinstance(message, Add):
            self.add(message)
        else:
            self.abort(message.request_ids)

    def step(self) -> Outputs | None:
        """Compute one step; None when there was nothing to compute and no gauge moved.

        Raises `EngineDead` when steps keep failing: the device, not a request, is at fault.
        """
        step = self.scheduler.schedule()
        if step is None:
            if self._silent:
                return None
            self._silent = True
            return self._report([])
        self.step_started = time.monotonic()
        try:
            outputs = self.scheduler.update(step, self.runner.execute(step))
            self._failed_in_a_row = 0
        except Exception as error:
            logger.exception("step %d failed", self.steps_done)
            self._failed_in_a_row += 1
            outputs = self.scheduler.fail_step(f"the engine failed at this request: {error}")
            if self._failed_in_a_row == MAX_FAILED_STEPS:
                raise EngineDead(
                    f"{MAX_FAILED_STEPS} steps failed in a row, last: {error}"
                ) from error
        finally:
            self.step_started = None
        self.steps_done += 1
        self._silent = False
        return self._report(outputs)

    def _report(self, outputs: list[TokenOutput]) -> Outputs:
        return Outputs(outputs, self.scheduler.take_stats(), time.monotonic())
