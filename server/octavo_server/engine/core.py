"""The engine as one object: requests in, a step at a time, tokens out. Knows no process and no
clock but time.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

from octavo_server.engine.messages import Abort, Add, Outputs, Ready, TokenOutput
from octavo_server.engine.scheduler import Scheduler
from octavo_server.engine.step import Sampled, Step
from octavo_server.errors import EngineDead, StepOutOfMemory

logger = logging.getLogger(__name__)

MAX_FAILED_STEPS = 3
"""Failures in a row before the engine gives up: one odd request must not end it, a broken device
must. A lack of memory does not count: the device is well, and others may give some back.
"""


class StepRunner(Protocol):
    """What executes steps: `runner.Runner`, or a scripted one in tests."""

    def launch(self, step: Step) -> Any:
        """Start a step behind those launched before; does not wait for the device."""

    def wait(self, launched: Any) -> Sampled:
        """Results of the oldest step not yet waited for. Raises `EngineDead` (as `launch` does)
        where no other step can be run either.
        """

    def close(self) -> None:
        """End what runs beside this process; nothing is launched afterwards."""


class EngineCore:
    """Ties the scheduler to a runner. `step_started` tells a watcher how long the current step
    takes.

    With `overlap`, one step is always queued behind the one that the device computes: the next is
    scheduled and launched first, then the results of the one before are awaited and published.
    """

    def __init__(
        self, scheduler: Scheduler, runner: StepRunner, ready: Ready, *, overlap: bool = False
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.ready = ready
        self.steps_done = 0
        self.step_started: float | None = None
        self._most_in_flight = 1 if overlap else 0
        self._in_flight: deque[Any] = deque()
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

    def close(self) -> None:
        """End other ranks' processes, if there are any."""
        self.runner.close()

    def handle(self, message: Add | Abort) -> None:
        """Apply one message of the API process."""
        if isinstance(message, Add):
            self.add(message)
        else:
            self.abort(message.request_ids)

    def step(self) -> Outputs | None:
        """Launch a step, then publish the oldest one in flight if another is behind it or nothing
        else is left to do.

        None when nothing was published and no gauge moved. Raises `EngineDead` when steps keep
        failing (the device, not a request, is at fault), or where the runner says so.
        """
        step = self.scheduler.schedule()
        if step is None and not self._in_flight:
            if self._silent:
                return None
            self._silent = True
            return self._report([])
        self.step_started = time.monotonic()
        self._silent = False
        done_before = self.steps_done
        outputs: list[TokenOutput] = []
        try:
            launch_error = self._launch(step) if step is not None else None
            limit = 0 if step is None or launch_error else self._most_in_flight
            while len(self._in_flight) > limit:
                sampled = self.runner.wait(self._in_flight.popleft())
                outputs += self.scheduler.update(sampled)
                self.steps_done += 1
                self._failed_in_a_row = 0
            if launch_error is not None:
                raise launch_error
        except EngineDead:
            raise
        except StepOutOfMemory as error:
            logger.error("step %d failed: %s", self.steps_done, error)
            self._in_flight.clear()
            outputs += self.scheduler.fail_steps(str(error))
        except Exception as error:
            logger.exception("step %d failed", self.steps_done)
            self._in_flight.clear()
            self._failed_in_a_row += 1
            outputs += self.scheduler.fail_steps(f"the engine failed at this request: {error}")
            if self._failed_in_a_row == MAX_FAILED_STEPS:
                raise EngineDead(
                    f"{MAX_FAILED_STEPS} steps failed in a row, last: {error}"
                ) from error
        finally:
            self.step_started = None
        return self._report(outputs) if outputs or self.steps_done > done_before else None

    def _launch(self, step: Step) -> Exception | None:
        """Launch a step; its failure is returned, for older steps are to be published first."""
        try:
            self._in_flight.append(self.runner.launch(step))
        except Exception as error:
            return error
        return None

    def _report(self, outputs: list[TokenOutput]) -> Outputs:
        return Outputs(outputs, self.scheduler.take_stats(), time.monotonic())
