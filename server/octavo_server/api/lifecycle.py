"""Where a server stands: starting, ready, draining or failed; and whether its engine is well.

Pure state with the time passed in; `serve.py` drives it, the handlers ask it.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from octavo_server.api.errors import Unavailable
from octavo_server.engine.messages import Heartbeat
from octavo_server.errors import EngineDead

State = Literal["starting", "ready", "draining", "failed"]

# The engine's beats come every second from a thread of their own: ten lost ones mean a process that
# is gone or stopped, never one that is busy.
HEARTBEAT_LIMIT_SECONDS = 10.0


class Lifecycle:
    """starting -> ready -> draining; failed from anywhere, and for ever."""

    def __init__(self, *, step_limit_seconds: float = 300.0) -> None:
        self.state: State = "starting"
        self.failure = ""
        self.active = 0  # HTTP requests that were admitted and are not fully answered
        self.idle = asyncio.Event()  # set while none is active
        self.idle.set()
        self._step_limit_seconds = step_limit_seconds
        self._last_beat: float | None = None
        self._step_started: float | None = None
        self._steps_done = -1
        self._last_progress: float | None = None  # a step ended, or there was no work

    def loaded(self, now: float) -> None:
        """The engine made its first step. A drain that began meanwhile goes on."""
        self._last_beat = now
        if self.state == "starting":
            self.state = "ready"

    def drain(self) -> None:
        """Refuse new work from now on."""
        if self.state != "failed":
            self.state = "draining"

    def fail(self, message: str) -> None:
        """The engine cannot go on."""
        self.state, self.failure = "failed", message

    def beat(self, message: Heartbeat, now: float) -> None:
        """The engine's process lives; whether it also works is for `health` to judge."""
        self._last_beat = now
        self._step_started = message.step_started
        if not message.has_work or message.steps_done != self._steps_done:
            self._steps_done = message.steps_done
            self._last_progress = now

    def admit(self) -> None:
        """Raise unless new work is welcome."""
        if self.state == "starting":
            raise Unavailable("the model is still loading: try again soon")
        if self.state == "draining":
            raise Unavailable("this server is shutting down: try another replica")
        if self.state == "failed":
            raise EngineDead(f"the engine failed: {self.failure}")

    def enter(self) -> None:
        """A request was admitted."""
        self.active += 1
        self.idle.clear()

    def leave(self) -> None:
        """It is answered, or its client is gone."""
        self.active -= 1
        if not self.active:
            self.idle.set()

    def health(self, now: float) -> str | None:
        """Why this server should be restarted; None while it is well. Busy and loading are well."""
        if self.state == "failed":
            return f"the engine failed: {self.failure}"
        if self._last_beat is None:
            return None
        silent = now - self._last_beat
        if silent > HEARTBEAT_LIMIT_SECONDS:
            return f"the engine has been silent for {silent:.0f} s"
        if self._step_started is not None and now - self._step_started > self._step_limit_seconds:
            return f"a step of the engine has been running for {now - self._step_started:.0f} s"
        if self._last_progress is not None and now - self._last_progress > self._step_limit_seconds:
            idle = now - self._last_progress
            return f"the engine has work and has ended no step for {idle:.0f} s"
        return None
