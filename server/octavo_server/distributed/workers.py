"""Rank 0's hold on the processes of the other ranks: starts them, orders them, notices their end.

One that ends, or a step that does not, ends the group: ranks wait for one another in every layer,
and what they hold would no longer be the same.
"""

from __future__ import annotations

import dataclasses
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec
import torch

from octavo_server.config import EngineConfig
from octavo_server.distributed.group import Group
from octavo_server.distributed.orders import (
    Leave,
    Measured,
    Order,
    RankFailed,
    Report,
    Settings,
    Settled,
)
from octavo_server.distributed.ring import Writer, make_ring
from octavo_server.engine.ending import how_it_ended
from octavo_server.engine.spinning import short_spins
from octavo_server.errors import EngineDead, InvalidSettings, StartupError

STEP_SECONDS = {"cuda": 60.0, "cpu": 600.0}
"""Default for how long a step may take: a collective that waits longer waits for nobody."""

_MEETING_SECONDS = 900.0
"""How long a rank waits in a collective: they load at different speeds. A rank that died is seen
sooner than that, by rank 0."""

_LOOK_SECONDS = 0.5
_LEAVE_SECONDS = 2.0
_STUCK_SECONDS = 5.0
_LAST_WORDS_SECONDS = 2.0
"""From a collective that failed until it is known which rank's death was the cause."""

MODULE = "octavo_server.distributed.worker"

OnFailure = Callable[[RankFailed], None]


class Workers:
    """The ranks 1 to size - 1. All methods are for one thread; `on_failure` is called by another.

    Without `on_failure`, a failure ends this process if it is then stuck in a step, waiting for a
    rank that is gone: nothing else ends a kernel that waits. Otherwise the next order raises.
    """

    def __init__(self, size: int, on_failure: OnFailure | None = None) -> None:
        if sys.platform != "linux":
            raise InvalidSettings("--tensor-parallel-size above 1 needs Linux")
        self._size, self._on_failure = size, on_failure
        self._ring = make_ring(size - 1)
        self._writer = Writer(self._ring)
        self._encoder = msgspec.msgpack.Encoder()
        self._meeting = os.memfd_create("octavo-meeting")
        self._reports: list[int] = []  # a pipe from each
        self._report_ends: list[int] = []  # theirs, until they are told of them
        self._answers: queue.SimpleQueue[Settled | Measured] = queue.SimpleQueue()
        self._group: Group | None = None
        self._failure: RankFailed | None = None
        self._failed = threading.Event()
        self._closing = False
        self._watched = False
        self._step_seconds = 0.0
        self._step_began: float | None = time.monotonic()  # its start counts as one, without limit
        self._processes = [self._spawn() for _ in range(size - 1)]

    def _spawn(self) -> subprocess.Popen[bytes]:
        report, end = os.pipe()
        self._reports.append(report)
        self._report_ends.append(end)
        environment = {**os.environ, **short_spins(os.environ)}
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        return subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            pass_fds=[*self._ring.all, self._meeting, end],
            env=environment,
        )

    def start(self) -> None:
        """Tell them who they are. Orders and a watch over them can follow."""
        lasting = threading.current_thread() is threading.main_thread()
        for rank, process in enumerate(self._processes, 1):
            settings = Settings(
                rank=rank,
                size=self._size,
                ring=self._ring,
                meeting=self._meeting,
                reports=self._report_ends[rank - 1],
                parent_pid=os.getpid(),
                parent_lives=lasting,
            )
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it died already, which the watch reports
                process.stdin.write(msgspec.json.encode(settings) + b"\n")
                process.stdin.flush()
            os.close(self._report_ends[rank - 1])
        self._report_ends.clear()
        self._watched = True
        threading.Thread(target=self._watch, name="ranks-watch", daemon=True).start()

    def join(self, device: torch.device) -> Group:
        """Rank 0's end of the group, once all ranks are there: those that could not use it would
        not come.
        """
        self._answers_of_all()
        self._group = join(0, self._size, self._meeting, device)
        return self._group

    def order(self, order: Order) -> None:
        """Raises EngineDead where the group has failed."""
        self._check()
        self._writer.send(self._encoder.encode(order), self._check)

    def smallest_measured(self, own: int) -> int:
        """The least of all ranks' bytes for the cache."""
        answers = self._answers_of_all()
        return min(own, *(answer.cache_bytes for answer in answers if isinstance(answer, Measured)))

    def _answers_of_all(self) -> list[Settled | Measured]:
        found: list[Settled | Measured] = []
        while len(found) < self._size - 1:
            with suppress(queue.Empty):
                found.append(self._answers.get(timeout=_LOOK_SECONDS))
            self._check()
        return found

    def started(self, step_seconds: float) -> None:
        """From here on a step may take so long."""
        self._step_seconds = step_seconds
        self._step_began = None

    def step_begins(self) -> None:
        self._step_began = time.monotonic()

    def step_ends(self) -> None:
        self._step_began = None

    def cause(self, error: BaseException) -> str:
        """Why a step failed here: another rank's end, if it was that. Then none may go on."""
        if not self._failed.wait(_LAST_WORDS_SECONDS):
            text = f"{type(error).__name__}: {error}"
            self._fail(RankFailed("EngineFailed", f"rank 0 of {self._size} failed: {text}"))
        assert self._failure is not None
        return self._failure.message

    def startup_error(self, error: BaseException) -> BaseException:
        """What to raise for `error` in a start: another rank's failure where that is the cause."""
        if isinstance(error, StartupError) or not self._failed.wait(_LAST_WORDS_SECONDS):
            return error
        assert self._failure is not None
        found = StartupError(self._failure.message)
        found.reason, found.exit_code = self._failure.reason, self._failure.exit_code
        return found

    def close(self, *, orderly: bool = True) -> None:
        """End them; `orderly` only if they are in the group and nothing failed. Idempotent."""
        if self._closing:
            return
        orderly = orderly and self._group is not None and self._failure is None
        if self._failure is None:
            self._failure = RankFailed("EngineFailed", "the engine was closed")
        self._closing = True
        if orderly:
            # Their ends of the group are closed while this one is.
            with suppress(OSError):
                self._writer.send(self._encoder.encode(Leave()))
            self._leave_group()
            deadline = time.monotonic() + _LEAVE_SECONDS
            for process in self._processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        self._kill()
        if not orderly:
            self._leave_group()
        left = [*self._ring.all, self._meeting, *self._report_ends]
        if not self._watched:
            left += self._reports
        for descriptor in left:
            os.close(descriptor)
        self._report_ends.clear()

    def _leave_group(self) -> None:
        if self._group is not None:
            # May wait for ranks that are gone.
            leaving = threading.Thread(target=self._group.close, daemon=True)
            leaving.start()
            leaving.join(_LEAVE_SECONDS)

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            assert process.stdin is not None
            process.stdin.close()

    def _check(self) -> None:
        if self._failure is not None:
            raise EngineDead(self._failure.message)

    # -- the watch's thread -----------------------------------------------------------------------

    def _watch(self) -> None:
        poll = select.poll()
        buffers = dict.fromkeys(self._reports, b"")
        for descriptor in self._reports:
            poll.register(descriptor, select.POLLIN)
        said: dict[int, RankFailed] = {}
        while not self._closing:
            began, limit = self._step_began, self._step_seconds
            if began is not None and limit and time.monotonic() - began > limit:
                self._fail(
                    RankFailed(
                        "EngineFailed",
                        f"a step of {self._size} ranks has not ended within {limit:.0f} s: one of "
                        "them hangs",
                    )
                )
                break
            for descriptor, _ in poll.poll(_LOOK_SECONDS * 1000):
                rank = 1 + self._reports.index(descriptor)
                read = os.read(descriptor, 1 << 16)
                if not read:
                    poll.unregister(descriptor)
                    if not self._closing:
                        self._fail(said.get(rank) or self._death(rank))
                    continue
                *lines, buffers[descriptor] = (buffers[descriptor] + read).split(b"\n")
                for line in lines:
                    report: Report = msgspec.json.decode(line, type=Report)
                    if isinstance(report, RankFailed):
                        said[rank] = report
                    else:
                        self._answers.put(report)
            if self._failed.is_set():
                break
        for descriptor in self._reports:
            os.close(descriptor)

    def _death(self, rank: int) -> RankFailed:
        """Of a rank that said nothing; its pipe is closed, so it is ending."""
        try:
            code = self._processes[rank - 1].wait(_LAST_WORDS_SECONDS)
        except subprocess.TimeoutExpired:
            code = 1
        how = how_it_ended(code)
        return RankFailed("EngineFailed", f"rank {rank} of {self._size} ended by {how}")

    def _fail(self, failure: RankFailed) -> None:
        if self._failure is not None:
            return
        self._failure = failure
        self._failed.set()
        for process in self._processes:
            process.kill()
        if self._on_failure is not None:
            self._on_failure(failure)
            return
        deadline = time.monotonic() + _STUCK_SECONDS
        stuck = self._step_began
        while stuck is not None and self._step_began == stuck and not self._closing:
            if time.monotonic() > deadline:
                print(f"error: {failure.message}", file=sys.stderr, flush=True)
                os._exit(1)
            time.sleep(0.1)


def join(rank: int, size: int, meeting: int, device: torch.device) -> Group:
    """A rank's end of the group; `meeting` is a descriptor that all of them have of one file."""
    # Late: one rank alone never imports torch.distributed.
    import torch.distributed as dist

    from octavo_server.distributed.torch_group import make_group

    if dist.is_initialized():
        raise InvalidSettings(
            "this process already has an engine of several ranks: close it before another starts"
        )
    return make_group(rank, size, f"file:///proc/self/fd/{meeting}", device, _MEETING_SECONDS)


def local_config(config: EngineConfig, path: str, dtype: str, device: str) -> EngineConfig:
    """What the other ranks are told: what rank 0 found need not be found again."""
    return dataclasses.replace(
        config,
        model=path,
        revision=None,
        dtype=dtype,  # type: ignore[arg-type]
        device=device,  # type: ignore[arg-type]
    )
