"""What the operator's probes are told.

Kopf has a liveness endpoint, too; but it answers only while Kopf runs (not on standby), and a
failing check makes it wait instead of saying no.
"""

from __future__ import annotations

from aiohttp import web

from octavo_operator.queue import Queue

STALLED_SECONDS = 300.0
"""A key that waits this long for a worker means that all workers hang: no pass takes longer than
two minutes."""


class Health:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.doing = ""
        """In a word, once it knows what: leading or standing by."""

    async def alive(self, _: web.Request) -> web.Response:
        """200, or 503 where passes are due and none ends; no answer where the loop hangs.

        Not for passes that are only slow (an API server with thousands of services): they end.
        """
        stalled = min(self._queue.overdue_seconds(), self._queue.idle_seconds())
        if stalled > STALLED_SECONDS:
            return web.Response(status=503, text=f"no pass for {stalled:.0f} s\n")
        return web.Response(text=f"{len(self._queue)} waiting\n")

    async def ready(self, _: web.Request) -> web.Response:
        """200 once it leads, or stands by for one that does."""
        return web.Response(status=200 if self.doing else 503, text=f"{self.doing or 'starting'}\n")
