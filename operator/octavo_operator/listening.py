"""A small HTTP server of the operator: probes, metrics."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.Response]]


@contextlib.asynccontextmanager
async def listening(port: int, paths: Mapping[str, Answer]) -> AsyncIterator[None]:
    """GETs of `paths` are answered on `port`; on none if that is 0. OSError if it is taken."""
    if not port:
        yield
        return
    app = web.Application()
    for path, answer in paths.items():
        app.router.add_get(path, answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "0.0.0.0", port).start()
        yield
    finally:
        await runner.cleanup()
