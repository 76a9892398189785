"""Startup, readiness and liveness probes: one check, and the counting around it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from octavo_operator.local.sandbox import Manifest

Execute = Callable[[list[str], float], Awaitable[tuple[int, str]]]
"""(command, timeout in seconds) -> (exit code, output) in the container; raises TimeoutError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a container's probes and HTTP hooks go; `port` maps a number or a port's name."""

    host: str
    port: Callable[[int | str], int]
    execute: Execute


class Counter:
    """Turns single results into the probe's state by its thresholds; pure."""

    def __init__(self, probe: Manifest, state: bool | None) -> None:
        self.state = state
        self._needed = {
            True: int(probe.get("successThreshold") or 1),
            False: int(probe.get("failureThreshold") or 3),
        }
        self._last: bool | None = None
        self._run = 0

    def add(self, result: bool) -> bool | None:
        """The new state if this result changed it, else None."""
        self._run = self._run + 1 if result == self._last else 1
        self._last = result
        if self._run < self._needed[result] or self.state == result:
            return None
        self.state = result
        return result


async def check(probe: Manifest, target: Target) -> str | None:
    """None if the probe passes, else why not in a kubelet's words."""
    timeout_seconds = float(probe.get("timeoutSeconds") or 1)
    try:
        if "exec" in probe:
            code, output = await target.execute(probe["exec"]["command"], timeout_seconds)
            return None if code == 0 else output.strip() or f"command exited with {code}"
        if "tcpSocket" in probe:
            action = probe["tcpSocket"]
            host = action.get("host") or target.host
            connect = asyncio.open_connection(host, target.port(action["port"]))
            _, writer = await asyncio.wait_for(connect, timeout_seconds)
            writer.close()
            return None
        status, body = await http_get(probe["httpGet"], target, timeout_seconds)
        if 200 <= status < 400:
            return None
        return f"HTTP probe failed with statuscode: {status}" + (f" ({body})" if body else "")
    except TimeoutError:
        return f"timed out after {timeout_seconds:g} s"
    except (OSError, aiohttp.ClientError) as error:
        return str(error) or type(error).__name__


async def http_get(action: Manifest, target: Target, timeout_seconds: float) -> tuple[int, str]:
    """Status and the body's first 200 bytes; certificates are not verified, as in a kubelet."""
    scheme = str(action.get("scheme") or "HTTP").lower()
    host = action.get("host") or target.host
    host = f"[{host}]" if ":" in host else host
    path = str(action.get("path") or "/")
    url = f"{scheme}://{host}:{target.port(action['port'])}/{path.removeprefix('/')}"
    headers = {"User-Agent": "kube-probe/1.37", "Accept": "*/*", "Connection": "close"}
    headers |= {h["name"]: h["value"] for h in action.get("httpHeaders") or ()}
    timeout = aiohttp.ClientTimeout(total=timeout_seconds)
    async with (
        aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
        session.get(url, ssl=False, allow_redirects=False) as response,
    ):
        body = await response.content.read(200)
        return response.status, body.decode(errors="replace").strip()


async def watch(
    probe: Manifest,
    target: Target,
    *,
    state: bool | None,
    on_change: Callable[[bool], None],
    on_failure: Callable[[str], None],
    stop_when: bool | None = None,
) -> None:
    """Probes for ever, or until the state becomes `stop_when`; every single failure is told."""
    counter = Counter(probe, state)
    await asyncio.sleep(float(probe.get("initialDelaySeconds") or 0))
    period_seconds = float(probe.get("periodSeconds") or 10)
    while True:
        failure = await check(probe, target)
        if failure is not None:
            on_failure(failure)
        changed = counter.add(failure is None)
        if changed is not None:
            on_change(changed)
            if changed is stop_when:
                return
        await asyncio.sleep(period_seconds)


def port_number(container: Manifest, port: int | str) -> int:
    """A probe's port as a number; raises OSError for a name that the container does not declare."""
    if isinstance(port, int) or port.isdecimal():
        return int(port)
    ports: list[dict[str, Any]] = container.get("ports") or []
    for declared in ports:
        if declared.get("name") == port:
            return int(declared["containerPort"])
    raise OSError(f'couldn\'t find port "{port}" in container {container["name"]}')
