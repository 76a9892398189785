"""preStop hooks: exec, httpGet, sleep."""

from __future__ import annotations

import asyncio

import aiohttp

from octavo_operator.local.probes import Target, http_get
from octavo_operator.local.sandbox import Manifest


async def run_hook(hook: Manifest, target: Target, timeout_seconds: float) -> str | None:
    """None if the hook did its work within the time, else why not."""
    try:
        async with asyncio.timeout(timeout_seconds):
            if "sleep" in hook:
                await asyncio.sleep(float(hook["sleep"]["seconds"]))
            elif "exec" in hook:
                code, output = await target.execute(hook["exec"]["command"], timeout_seconds)
                if code:
                    return f"command exited with {code}: {output.strip()}"
            elif "httpGet" in hook:
                status, _ = await http_get(hook["httpGet"], target, timeout_seconds)
                if status >= 400:
                    return f"HTTP {status}"
    except TimeoutError:
        return f"not done after {timeout_seconds:g} s"
    except (OSError, aiohttp.ClientError) as error:
        return str(error) or type(error).__name__
    return None
