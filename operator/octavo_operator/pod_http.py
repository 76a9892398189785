"""Questions to pods over HTTP: small JSON answers, or none in time."""

from __future__ import annotations

import json
from typing import Any

import aiohttp

TIMEOUT_SECONDS = 2.0
MOST_BYTES = 1 << 16


class PodHttp:
    """One session; use it as an asynchronous context manager."""

    def __init__(self, connections: int = 64) -> None:
        """`connections`: how many at a time."""
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> PodHttp:
        # No proxy of the environment: pods are asked themselves. A connection that is kept would
        # hold a pod's drain up.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections, force_close=True),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, ip: str, port: int, path: str) -> dict[str, Any] | None:
        """The JSON object that the pod answers with; None for anything else. It never raises: a
        pod that is going, a network policy and a stranger's answer are all no news.
        """
        assert self._session is not None, "use `async with PodHttp()`"
        host = f"[{ip}]" if ":" in ip else ip
        try:
            async with self._session.get(
                f"http://{host}:{port}{path}", allow_redirects=False
            ) as response:
                if response.status != 200:
                    return None
                text = b""
                async for piece in response.content.iter_any():
                    text += piece
                    if len(text) > MOST_BYTES:
                        return None
                found = json.loads(text)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None
