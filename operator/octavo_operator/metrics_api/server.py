"""The HTTP side of the metrics API: who asks, what for, and the answer or a metav1.Status."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable

from aiohttp import web

from octavo_operator.metrics_api.access import Access
from octavo_operator.metrics_api.answers import answer
from octavo_operator.metrics_api.documents import Object, Refusal, describe_refusal
from octavo_operator.metrics_api.fleet import Fleet
from octavo_operator.metrics_api.front_proxy import FrontProxy, User, is_front_proxy, read_user
from octavo_operator.metrics_api.questions import Values, read_path

log = logging.getLogger(__name__)


class Server:
    """`proxy` is who may ask; None until that is known. `ready`: whether all there is is known."""

    def __init__(
        self,
        fleet: Fleet,
        access: Access,
        ready: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet, self._access, self._ready, self._clock = fleet, access, ready, clock
        self.proxy: FrontProxy | None = None

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        return app

    async def handle(self, request: web.Request) -> web.Response:
        """Never with Retry-After: its reader would come back each second, and hold others up."""
        try:
            return _json(200, await self._answer(request))
        except Refusal as refusal:
            return _json(refusal.code, describe_refusal(refusal))
        except Exception:
            log.exception("%s %s", request.method, request.path)
            defect = Refusal(500, "a defect of octavo metrics-api: its log has more")
            return _json(500, describe_refusal(defect))

    async def _answer(self, request: web.Request) -> Object:
        user = self._user(request)
        question = read_path(request.rel_url.raw_path)
        if question is None:
            raise Refusal(404, f"there is nothing at {request.path}")
        if request.method not in ("GET", "HEAD"):
            raise Refusal(405, "metrics can be read, with GET, and nothing else")
        # What metrics there are is no secret, and the API server looks at it to see who is alive.
        if isinstance(question, Values):
            await self._access.check(user, question)
            if not self._ready():
                raise Refusal(503, "octavo metrics-api has just begun: no pods are known yet")
        return answer(
            question, request.query, self._fleet, now=self._clock(), time=time.time()
        )  # fmt: skip

    def _user(self, request: web.Request) -> User:
        transport = request.transport
        certificate = None if transport is None else transport.get_extra_info("peercert")
        if self.proxy is None or not is_front_proxy(self.proxy, certificate):
            raise Refusal(
                401, "only the API server may ask, with the certificate of its front proxy"
            )
        if (user := read_user(self.proxy, request.headers.items())) is None:
            raise Refusal(401, "the API server named no user")
        return user


def _json(code: int, document: Object) -> web.Response:
    return web.Response(
        status=code, body=json.dumps(document).encode(), content_type="application/json"
    )
