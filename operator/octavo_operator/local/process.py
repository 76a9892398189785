"""One container process, started through the launcher so that nothing of it outlives the runner."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from octavo_operator.local.sandbox import Launch

LAUNCHER = str(Path(__file__).with_name("launcher.py"))


class StartFailed(Exception):
    """The command could not be executed (not found, no permission); the text says which and why."""


class Process:
    """`pid` is the container's first process, `wait` its exit code (128 + signal if killed)."""

    def __init__(self, launcher: asyncio.subprocess.Process, control: int, pid: int) -> None:
        self.pid = pid
        self._launcher = launcher
        self._control: int | None = control
        self._waiting = asyncio.create_task(self._wait())

    @classmethod
    async def start(cls, launch: Launch, output: int) -> Process:
        """Runs `launch` with stdout and stderr going to the fd `output`; raises StartFailed."""
        control_read, control_write = os.pipe()
        status_read, status_write = os.pipe()
        try:
            launcher = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", LAUNCHER, str(control_read), str(status_write),
                str(-1 if launch.user is None else launch.user),
                str(-1 if launch.group is None else launch.group), *launch.argv,
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                env=launch.env, cwd=launch.cwd, pass_fds=(control_read, status_write),
                start_new_session=True,
            )  # fmt: skip
        except BaseException as error:
            os.close(control_write)
            os.close(status_read)
            if isinstance(error, OSError | ValueError):
                raise StartFailed(f"cannot start {launch.argv[0]!r}: {error}") from None
            raise
        finally:
            os.close(control_read)
            os.close(status_write)
        try:
            words = await _read_to_end(status_read)
        except BaseException:
            os.close(control_write)  # the launcher sees it and kills the container
            raise
        lines = dict(line.split(" ", 1) for line in words.decode(errors="replace").splitlines())
        process = cls(launcher, control_write, int(lines.get("pid", "0")))
        if "error" in lines or "pid" not in lines:
            await process.wait()
            raise StartFailed(lines.get("error", f"cannot start {launch.argv[0]!r}"))
        return process

    @property
    def ended(self) -> bool:
        return self._waiting.done()

    def signal(self, number: int) -> None:
        """To the container's first process, as a kubelet's SIGTERM; its end is the end of all."""
        if self._control is not None:
            try:
                os.write(self._control, bytes([number]))
            except OSError:
                pass  # it ended this moment

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    async def wait(self) -> int:
        return await asyncio.shield(self._waiting)

    async def wait_for(self, seconds: float) -> bool:
        """True if the process ended within `seconds`."""
        done, _ = await asyncio.wait([self._waiting], timeout=max(0.0, seconds))
        return bool(done)

    async def _wait(self) -> int:
        try:
            code = await self._launcher.wait()
            return 128 - code if code < 0 else code
        finally:
            if self._control is not None:
                os.close(self._control)
                self._control = None


async def _read_to_end(fd: int) -> bytes:
    """Reads and closes `fd` without blocking the loop."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    data = bytearray()
    ended: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        chunk = os.read(fd, 4096)
        data.extend(chunk)
        if not chunk and not ended.done():
            ended.set_result(None)

    loop.add_reader(fd, readable)
    try:
        await ended
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return bytes(data)
