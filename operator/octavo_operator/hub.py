"""The config.json of models on the Hub, read once for each revision, beside the passes.

Never a weight, never with a token: the operator may not read Secrets, so a gated model's stays
unknown.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import aiohttp

from octavo_operator import conditions
from octavo_operator.fit import Unread
from octavo_operator.model_uri import HubModel, ModelUri
from octavo_operator.queue import Key
from octavo_server.errors import StartupError
from octavo_server.model_config import ModelConfig, parse_config

TIMEOUT_SECONDS = 5.0
AGAIN_SECONDS = 600.0
"""After which what could not be read is asked for again; what could is kept: a revision's files do
not change, a branch's config hardly."""

MOST_BYTES = 1 << 20
MOST_MODELS = 1000

NOT_ON_THE_HUB = Unread(
    conditions.MODEL_NOT_READABLE,
    "the operator reads config.json of models on the Hub (hf://) only",
)
UNREACHABLE = Unread(conditions.HUB_UNREACHABLE, "the Hub does not answer the operator")


class HubConfigs:
    """`again(key)` is called when a config that a pass has asked for is there, or is not."""

    def __init__(
        self, again: Callable[[Key], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._again, self._clock = again, clock
        self._known: dict[HubModel, tuple[ModelConfig | Unread, float]] = {}
        self._asking: dict[HubModel, set[Key]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def get(self, source: ModelUri, key: Key) -> ModelConfig | Unread | None:
        """None: it is being asked for, and `again(key)` comes soon."""
        if not isinstance(source, HubModel):
            return NOT_ON_THE_HUB
        known = self._known.get(source)
        if known is not None and self._clock() < known[1]:
            return known[0]
        if source not in self._asking:
            self._asking[source] = set()
            task = asyncio.ensure_future(self._ask(source))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._asking[source].add(key)
        # What was known before is better than nothing meanwhile.
        return None if known is None else known[0]

    async def _ask(self, source: HubModel) -> None:
        found: ModelConfig | Unread = UNREACHABLE
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                found = await fetch(source)
        except (aiohttp.ClientError, OSError, TimeoutError):
            pass
        finally:
            forever = isinstance(found, ModelConfig)
            until = float("inf") if forever else self._clock() + AGAIN_SECONDS
            while len(self._known) >= MOST_MODELS:
                self._known.pop(next(iter(self._known)))
            self._known[source] = (found, until)
            for key in self._asking.pop(source):
                self._again(key)


async def fetch(source: HubModel) -> ModelConfig | Unread:
    """Raises aiohttp.ClientError, OSError or TimeoutError where the Hub is away."""
    from huggingface_hub import hf_hub_url  # late: it takes a while to import

    url = hf_hub_url(source.repository, "config.json", revision=source.revision)
    async with aiohttp.ClientSession(trust_env=True) as session, session.get(url) as response:
        problem = response.headers.get("X-Error-Code", "")
        if response.status in (401, 403) or problem == "GatedRepo":
            return Unread(
                conditions.GATED_MODEL,
                f"{source.repository} is gated, private or does not exist: the operator reads no "
                "Secrets, so only the pods can tell whether it fits",
            )
        if response.status == 404:
            return Unread(
                conditions.MODEL_NOT_READABLE,
                f"the Hub has no config.json of {source.repository}"
                + (f" at {source.revision}" if source.revision else ""),
            )
        if response.status != 200:
            return Unread(
                conditions.HUB_UNREACHABLE,
                f"the Hub answers {response.status} for {source.repository}",
            )
        text = b""
        async for piece in response.content.iter_any():
            text += piece
            if len(text) > MOST_BYTES:
                break
    if len(text) > MOST_BYTES:
        return Unread(conditions.MODEL_NOT_READABLE, "its config.json is larger than 1 MiB")
    try:
        return parse_config(json.loads(text))
    except (ValueError, RecursionError) as error:
        return Unread(conditions.MODEL_NOT_READABLE, f"its config.json is no JSON: {error}")
    except StartupError as error:
        return Unread(conditions.MODEL_NOT_READABLE, str(error))
